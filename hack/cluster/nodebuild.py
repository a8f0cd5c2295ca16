"""Builds a node image without a registry. Whatever is changed here gives the image another name, see nodeimage.py.

What kind asks of a node image, and what its own base image is made of: images/base/Dockerfile and pkg/build/nodeimage in
kind's module. The files of that base image (entrypoint, units, containerd's configuration) are taken from the module; the
rest is Debian's (systemd, containerd, runc, CNI plugins) and what gotools.py builds.
"""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import gotools, ociimage, packages
from .debian import Bootstrap, slim_down
from .ociimage import Entry, ImageConfig, Layer
from .paths import MANIFESTS, Paths
from .progress import CommandFailed, end_with_parent, output, run, step, tail

ETCD_IMAGE = "registry.k8s.io/etcd:3.6.5-0"  # these three: what kubeadm of this Kubernetes version asks for
COREDNS_IMAGE = "registry.k8s.io/coredns/coredns:v1.12.1"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10.1"
NETWORK_IMAGE = "docker.io/finetune-test/node-network:1"
PROVISIONER_IMAGE = "docker.io/finetune-test/local-path-provisioner:1"
BUSYBOX_IMAGE = "docker.io/finetune-test/busybox:1"

KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
NODE_PACKAGES = (
    *("systemd", "containerd", "runc", "containernetworking-plugins"),
    *("iptables", "nftables", "iproute2", "conntrack", "ethtool", "socat", "kmod"),
    *("mount", "util-linux", "e2fsprogs", "procps", "hostname", "curl", "jq", "ca-certificates"),
)
NODE_CONFIG = ImageConfig(
    entrypoint=("/usr/local/bin/entrypoint", "/sbin/init"),
    environment=(ociimage.SEARCH_PATH, "container=docker"),
    stop_signal="SIGRTMIN+3",  # systemd's for "exit"; SIGTERM would have it execute itself again
)


def build(paths: Paths, work: Path, log: Path) -> Layer:
    """Builds the image's one layer in the folder `work`."""
    packages.ensure_programs(["debootstrap", "containerd", "busybox"], log)
    # Packages come over the network while Go keeps the processors busy.
    with Bootstrap(paths, work / "root", NODE_PACKAGES) as bootstrap:
        gotools.ensure_tools(paths, gotools.FOR_NODE)
        with step("wait for debootstrap"):
            root = bootstrap.wait()
    with step("make the file system a node"):
        _make_node(paths, root)
    with step("put Kubernetes' images into it"):
        _preload(paths, work, root, _write_images(paths, work, root))
    with step("pack it"):
        return _pack(root, work / "node.tar", log)


# --- the file system -----------------------------------------------------------------------------------------------


def _make_node(paths: Paths, root: Path) -> None:
    kind = gotools.module_folder(paths, "node", "sigs.k8s.io/kind")
    _copy_kind_files(kind / "images/base/files", root)
    _remove_units(root)
    _configure_services(root)
    _configure_containerd(root)
    _install_programs(paths, root)
    _install_manifests(root)
    slim_down(root)


def _copy_kind_files(files: Path, root: Path) -> None:
    for source in files.rglob("*"):
        target = root / source.relative_to(files)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            # The module cache is read-only, and a module's zip keeps no modes.
            shutil.copyfile(source, target)
            target.chmod(0o755 if target.parent.name == "bin" else 0o644)


# A container has none of the hardware, consoles and file systems that these look after.
UNWANTED_UNITS = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/basic.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
)


def _remove_units(root: Path) -> None:
    for pattern in UNWANTED_UNITS:
        for link in root.glob(pattern):
            link.unlink()


def _configure_services(root: Path) -> None:
    with (root / "etc/systemd/journald.conf").open("a") as settings:
        settings.write("ReadKMsg=no\n")  # the machine's kernel messages are not the node's
    init = root / "sbin/init"
    init.unlink(missing_ok=True)
    init.symlink_to("/usr/lib/systemd/systemd")
    _replace(root / "etc/systemd/system/containerd.service", "/usr/local/bin/containerd", "/usr/bin/containerd")
    output(["chroot", root, "systemctl", "--quiet", "enable", "kubelet", "containerd", "undo-mount-hacks"])
    output(["chroot", root, "systemctl", "--quiet", "mask", "systemd-binfmt"])  # it would change the machine's kernel


def _configure_containerd(root: Path) -> None:
    configuration = root / "etc/containerd/config.toml"
    _replace(configuration, 'pause:3.10"', f'{PAUSE_IMAGE.rpartition("/")[2]}"')
    # Lowering an oom score needs CAP_SYS_RESOURCE.
    _replace(configuration, "restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
    spec = json.loads(output(["chroot", root, "ctr", "oci", "spec"]))
    hooks = spec.setdefault("hooks", {}).setdefault("createContainer", [])
    hooks.append({"path": "/kind/bin/mount-product-files.sh"})
    spec["process"].pop("rlimits", None)
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(spec))


def _install_programs(paths: Paths, root: Path) -> None:
    shutil.copy(paths.bin / "k8s", root / "usr/bin/k8s")
    for program in ("kubelet", "kubeadm", "kubectl"):
        (root / "usr/bin" / program).symlink_to("k8s")
    (root / "opt/cni").mkdir(parents=True, exist_ok=True)
    (root / "opt/cni/bin").symlink_to("/usr/lib/cni")
    (root / "etc/cni/net.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/kubernetes/manifests").mkdir(parents=True, exist_ok=True)
    (root / "kind/version").write_text(gotools.KUBERNETES)


def _install_manifests(root: Path) -> None:
    """kind applies these two at the end of `create cluster`; it reads them from the node."""
    folder = root / "kind/manifests"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MANIFESTS / "node-network.yaml", folder / "default-cni.yaml")
    shutil.copy(MANIFESTS / "local-path.yaml", folder / "default-storage.yaml")


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    if old not in text:
        raise CommandFailed(f"{file} holds no {old!r} any more: kind's files have changed, look at nodeimage.py")
    file.write_text(text.replace(old, new))


# --- the images in it ----------------------------------------------------------------------------------------------


def _write_images(paths: Paths, work: Path, root: Path) -> list[tuple[Path, Layer]]:
    """Archives of all images that a fresh cluster runs, none of which can be pulled."""
    folder = work / "images"
    folder.mkdir(exist_ok=True)
    kubernetes = [*_busybox(), *_network_tools(root), Entry("usr/local/bin/k8s", paths.bin / "k8s")]
    kubernetes += [Entry(f"usr/local/bin/{name}", link="k8s") for name in (*KUBERNETES_PROGRAMS, "node-network")]
    names = [f"registry.k8s.io/{name}:{gotools.KUBERNETES}" for name in KUBERNETES_PROGRAMS]
    return [
        _write_image(folder, [*names, NETWORK_IMAGE], kubernetes),
        _write_image(folder, [PAUSE_IMAGE], [Entry("pause", paths.bin / "pause")], "/pause"),
        _write_image(folder, [COREDNS_IMAGE], [Entry("coredns", paths.bin / "coredns")], "/coredns"),
        _write_image(folder, [ETCD_IMAGE], [Entry("usr/local/bin/etcd", paths.bin / "etcd")]),
        _write_image(folder, [PROVISIONER_IMAGE], [_program(paths, "local-path-provisioner")]),
        _write_image(folder, [BUSYBOX_IMAGE], busybox_entries()),
    ]


def _program(paths: Paths, name: str) -> Entry:
    return Entry(f"usr/local/bin/{name}", paths.bin / name)


def _write_image(folder: Path, names: list[str], entries: list[Entry], *entrypoint: str) -> tuple[Path, Layer]:
    stem = names[-1].rpartition("/")[2].replace(":", "-")
    layer = ociimage.write_layer(folder / f"{stem}.layer", [*entries, Entry("tmp", mode=0o1777)])
    file = folder / f"{stem}.tar"
    with file.open("wb") as out:
        ociimage.write_archive(out, names, layer, ImageConfig(entrypoint=entrypoint))
    return file, layer


def busybox_entries() -> list[Entry]:
    """A shell and the usual small programs."""
    return [*_busybox(), Entry("etc"), Entry("root", mode=0o700), Entry("var")]


def _busybox() -> list[Entry]:
    busybox = packages.find_program("busybox")
    if busybox is None:
        raise CommandFailed("busybox (static) is missing: install busybox-static")
    applets = output([busybox, "--list"]).split()
    # The real ip and iptables are in one of the images, and are not to be hidden.
    links = [Entry(f"bin/{name}", link="busybox") for name in applets if name not in ("busybox", "ip", "iptables")]
    return [Entry("bin/busybox", Path(busybox)), *links]


def _network_tools(root: Path) -> list[Entry]:
    """ip and iptables with all that they load: kube-proxy and node-network call them."""
    extensions = sorted((root / "usr/lib/x86_64-linux-gnu/xtables").glob("*.so"))
    programs = [root / "usr/sbin/xtables-nft-multi", root / "usr/bin/ip", *extensions]
    files = {_inside(root, program) for program in programs}
    for program in list(files):
        files |= _libraries(root, program)
    entries = [Entry(name, (root / name.lstrip("/")).resolve()) for name in files]
    for family in ("iptables", "ip6tables"):
        entries += [Entry(f"usr/sbin/{family}{end}", link="xtables-nft-multi") for end in ("", "-save", "-restore")]
    return entries


def _inside(root: Path, file: Path) -> str:
    return "/" + str(file.relative_to(root))


def _libraries(root: Path, program: str) -> set[str]:
    done = subprocess.run(["chroot", root, "ldd", program], capture_output=True, text=True)
    return {word for word in done.stdout.split() if word.startswith("/lib")}


@contextlib.contextmanager
def _containerd(paths: Paths, work: Path, store: Path) -> Iterator[list[str | Path]]:
    """A containerd of this machine that writes into the node's own store; yields the words that start its client."""
    state = work / "containerd"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    socket = state / "socket"
    configuration = state / "config.toml"
    configuration.write_text(
        f'version = 2\nroot = "{store}"\nstate = "{state}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
    )
    log = paths.logs / "preload.log"
    client: list[str | Path] = ["ctr", "-a", socket, "-n", "k8s.io"]
    with log.open("wb") as text:
        daemon = subprocess.Popen(["containerd", "--config", configuration], stdout=text, stderr=text, preexec_fn=end_with_parent)
    try:
        for _ in range(100):
            if subprocess.run([*client, "version"], capture_output=True).returncode == 0:
                break
            time.sleep(0.2)
        else:
            raise CommandFailed(f"containerd does not answer; the end of {log}:\n{tail(log)}")
        yield client
    finally:
        daemon.terminate()
        daemon.wait()


def _preload(paths: Paths, work: Path, root: Path, images: list[tuple[Path, Layer]]) -> None:
    with _containerd(paths, work, root / "var/lib/containerd") as client:
        for file, layer in images:
            output([*client, "images", "import", "--all-platforms", file])
            # Unpacked, the layer itself is not needed any more: half of the image's size.
            output([*client, "content", "rm", layer.diff_id])


def _pack(root: Path, file: Path, log: Path) -> Layer:
    run(["tar", "--numeric-owner", "-C", root, "-cf", file, "."], log)
    return Layer(file)

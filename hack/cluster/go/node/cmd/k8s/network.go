package main

// node-network stands in for kindnetd, which is not published as a module. On its node it writes the CNI configuration for
// the node's own pod range, and keeps a route to every other node's range and the masquerade rule for what leaves the pods.
// It enforces no NetworkPolicy.

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	cniConfigFile = "/etc/cni/net.d/10-node-network.conflist"
	// Nodes come and go rarely; a new one is reachable at most this long after it got its pod range.
	networkPeriod = 3 * time.Second
)

const cniConfig = `{
  "cniVersion": "0.3.1",
  "name": "node-network",
  "plugins": [
    {
      "type": "ptp", "ipMasq": false, "mtu": 1500,
      "ipam": {
        "type": "host-local", "dataDir": "/run/cni-ipam-state",
        "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "%s"}]]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func configureNodeNetwork() error {
	client, err := inClusterClient()
	if err != nil {
		return err
	}
	for ; ; time.Sleep(networkPeriod) {
		if err := networkPass(client); err != nil {
			fmt.Fprintln(os.Stderr, err) // the next pass tries again
		}
	}
}

func inClusterClient() (*kubernetes.Clientset, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	// kind's manifest names the API server's own address: the Service's needs kube-proxy, which may start later than this.
	if endpoint := os.Getenv("CONTROL_PLANE_ENDPOINT"); endpoint != "" {
		config.Host = "https://" + endpoint
	}
	return kubernetes.NewForConfig(config)
}

func networkPass(client *kubernetes.Clientset) error {
	// resourceVersion 0: from the API server's cache, so that the poll costs etcd nothing.
	nodes, err := client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	if err := ensureMasquerade(os.Getenv("POD_SUBNET")); err != nil {
		return err
	}
	for _, node := range nodes.Items {
		switch {
		case node.Spec.PodCIDR == "":
		case node.Name == os.Getenv("NODE_NAME"):
			err = writeCNIConfig(node.Spec.PodCIDR)
		default:
			err = ensureRoute(node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func ensureMasquerade(podSubnet string) error {
	rule := []string{"-s", podSubnet, "!", "-d", podSubnet, "-j", "MASQUERADE"}
	if iptables("-C", rule) == nil {
		return nil
	}
	return iptables("-A", rule)
}

func iptables(action string, rule []string) error {
	return command("iptables", append([]string{"-w", "-t", "nat", action, "POSTROUTING"}, rule...)...)
}

func writeCNIConfig(podCIDR string) error {
	want := fmt.Sprintf(cniConfig, podCIDR)
	if have, _ := os.ReadFile(cniConfigFile); string(have) == want {
		return nil
	}
	// containerd watches the folder and reads what it finds: a half-written file must not be there to find.
	partial := filepath.Join(filepath.Dir(cniConfigFile), ".partial")
	if err := os.WriteFile(partial, []byte(want), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, cniConfigFile)
}

func ensureRoute(node corev1.Node) error {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return command("ip", "route", "replace", node.Spec.PodCIDR, "via", address.Address)
		}
	}
	return nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

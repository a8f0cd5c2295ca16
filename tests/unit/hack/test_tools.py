"""Programs that a stage starts: what becomes of their death and of their words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_api.outcome import ExitCode
from finetune_api.run import StorageLocation
from finetune_api.sections.export import GGUFType
from finetune_trainer.errors import StageError
from finetune_trainer.llama import gguf
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.llama.server import LlamaServer
from finetune_trainer.prepare import llama_proof
from finetune_trainer.storage import JobStorage

KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"


def tree(root: Path, converter: str = KILLED, layer: str = KILLED) -> Path:
    """A llama.cpp tree whose converter and Python layer do what their text says."""
    (root / "python").mkdir(parents=True)
    (root / "convert_hf_to_gguf.py").write_text(converter)
    (root / "python" / "llama_cpp.py").write_text(layer)
    return root


def make_vocab(root: Path) -> None:
    files = root / "files"
    files.mkdir()
    storage = JobStorage(StorageLocation(root=str(root / "storage"), prefix="job"), "pod")
    llama_proof.make_vocab(LlamaHome(tree(root / "llama")), storage, files)


def ask_ids(root: Path) -> None:
    llama_proof.llama_ids(LlamaHome(tree(root / "llama")), root / "vocab.gguf", ["a"])


def convert(root: Path) -> None:
    gguf.convert(LlamaHome(tree(root / "llama")), gguf.Source(root, "job"), root / "gguf" / "exact.gguf")


def quantize(root: Path) -> None:
    home = LlamaHome(tree(root / "llama"))
    home.quantizer.parent.mkdir()
    home.quantizer.write_text("#!/bin/sh\nkill -9 $$\n")
    home.quantizer.chmod(0o755)
    gguf.quantize(home, root / "exact.gguf", root / "gguf", "job", [GGUFType.F16])


@pytest.mark.parametrize("work", [make_vocab, ask_ids, convert, quantize])
def test_a_tool_that_the_kernel_killed_ran_out_of_memory(tmp_path: Path, work: Callable[[Path], None]) -> None:
    with pytest.raises(StageError, match="memory") as ended:
        work(tmp_path)
    assert (ended.value.reason, ended.value.exit_code) == ("OutOfMemory", ExitCode.OUT_OF_MEMORY)


def test_words_of_llama_cpp_that_quote_a_row_get_into_no_message(tmp_path: Path) -> None:
    """llama-cpp-python names the text that it cannot tokenise."""
    layer = "class Llama:\n    def __init__(self, *args, **settings):\n        raise RuntimeError('Failed to tokenize: text=canary-7f3a')\n"
    home = LlamaHome(tree(tmp_path / "llama", layer=layer))
    with pytest.raises(StageError) as refused:
        llama_proof.llama_ids(home, tmp_path / "vocab.gguf", ["canary-7f3a"])
    assert "canary" not in refused.value.message
    assert "RuntimeError" in refused.value.message


SERVER = """#!{python}
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("ask", [lambda server: server.get("/props"), lambda server: server.post("/tokenize", {})], ids=["get", "post"])
def test_a_server_that_dies_while_it_is_asked_is_no_storage_error(tmp_path: Path, ask: Callable[[LlamaServer], object]) -> None:
    home = LlamaHome(tree(tmp_path / "llama"))
    home.server.parent.mkdir()
    home.server.write_text(SERVER.format(python=sys.executable))
    home.server.chmod(0o755)
    model = tmp_path / "m.gguf"
    model.touch()
    with LlamaServer(home, model, tmp_path / "log") as server, pytest.raises(StageError) as failed:
        ask(server)
    assert failed.value.reason == "ServerFailed"


def test_a_converter_is_run_through_a_module_that_lies_where_the_image_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the image nothing is installed: PYTHONPATH names where the trainer lies."""
    (tmp_path / "way.py").write_text("import pathlib, sys\npathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text('made')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = gguf.Source(tmp_path, "job", ("-m", "way"))
    assert gguf.convert(LlamaHome(tree(tmp_path / "llama")), source, tmp_path / "gguf" / "exact.gguf").read_text() == "made"

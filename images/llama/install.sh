#!/bin/sh
# install.sh SOURCE BUILD PREFIX: lays out what was built as one tree that works wherever it is copied to.
#   bin/                     programs, linked to ../lib by RPATH
#   lib/                     shared libraries
#   convert_*.py conversion/ gguf-py/   the converters with the gguf package they were written for
#   python/llama_cpp         llama-cpp-python's Python layer; its lib/ is a link to ../../lib
set -eu
source=$1 build=$2 prefix=$3
vendored=$source/vendor/llama.cpp

mkdir -p "$prefix/bin" "$prefix/lib" "$prefix/gguf-py" "$prefix/python"

for program in llama-server llama-quantize llama-imatrix llama-perplexity; do
  install --strip "$build/bin/$program" "$prefix/bin/"
done
cp --no-dereference "$build"/bin/*.so* "$prefix/lib/"
find "$prefix/lib" -type f -exec strip --strip-unneeded {} +

cp "$vendored/convert_hf_to_gguf.py" "$vendored/convert_lora_to_gguf.py" "$prefix/"
cp -r "$vendored/conversion" "$prefix/"
cp -r "$vendored/gguf-py/gguf" "$prefix/gguf-py/"

cp -r "$source/llama_cpp" "$prefix/python/"
rm -rf "$prefix/python/llama_cpp/server" # a web server of its own, with dependencies that nothing here installs
ln -s ../../lib "$prefix/python/llama_cpp/lib"

cp "$vendored/LICENSE" "$prefix/LICENSE.llama.cpp"
cp "$source/LICENSE.md" "$prefix/LICENSE.llama-cpp-python.md"

# Hash-based bytecode that is never checked: it stays valid on a read-only file system and whatever a copy does to mtimes.
python3 -m compileall -q --invalidation-mode unchecked-hash "$prefix/conversion" "$prefix/gguf-py" "$prefix/python"

# In a node: bash -s DIFF-ID IDENTITY TREE
# Prepares the snapshot that containerd would unpack the layer DIFF-ID into, and puts a link to TREE in its place.
set -euo pipefail
diff_id=$1 identity=$2 tree=$3
ctr() { command ctr -n k8s.io "$@"; }

ctr snapshots info "$diff_id" > /dev/null 2>&1 && exit
test -e "$tree" || { echo "$tree is not mounted in this node" >&2; exit 1; }

key=sharing-$identity
ctr snapshots rm "$key" 2> /dev/null || true # of a run that was killed
ctr snapshots prepare "$key"
folder=$(ctr snapshots mounts /unused "$key" | grep -oE '/var/lib/containerd/[^ ]*/fs' | head -1)
rmdir "$folder"
ln -s "$tree" "$folder"
ctr snapshots commit "$diff_id" "$key"
# Held by no image until the import that follows: without the label it is garbage.
ctr snapshots label "$diff_id" containerd.io/gc.root=now > /dev/null

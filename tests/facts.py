#!/usr/bin/env python3
"""Prints what is in an OCI archive as JSON: the config, and the entries of each layer above the base.

Usage: facts.py IMAGE.tar LAYERS_OF_BASE. Left out, because they differ between any two builds: times, digests and sizes of
compressed layers. Python's own tar reader is used, so that nothing of the project judges itself.
"""
import hashlib, io, json, sys, tarfile

archive = tarfile.open(sys.argv[1])
base_layers = int(sys.argv[2])
blob = lambda digest: archive.extractfile("blobs/" + digest.replace(":", "/")).read()
index = json.load(archive.extractfile("index.json"))
manifest = json.loads(blob(index["manifests"][0]["digest"]))
while "manifests" in manifest:
    manifest = json.loads(blob(manifest["manifests"][0]["digest"]))
config = json.loads(blob(manifest["config"]["digest"]))
assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])
config.pop("created", None)
config.pop("rootfs")
config["history"] = [{k: v for k, v in h.items() if k != "created"} for h in config.get("history", [])]

kinds = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink",
         tarfile.LNKTYPE: "hardlink", tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block"}
layers = []
# A scratch image has no base layers; a named base has as many as it has.
for descriptor in manifest["layers"][base_layers:]:
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(blob(descriptor["digest"]))) as layer:
        for member in layer:
            entry = {"type": kinds[member.type], "mode": oct(member.mode), "owner": f"{member.uid}:{member.gid}"}
            if member.linkname:
                entry["link"] = member.linkname
            if member.isreg():
                entry["content"] = hashlib.sha256(layer.extractfile(member).read()).hexdigest()
            xattrs = {k: v for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")}
            if xattrs:
                entry["xattrs"] = xattrs
            entries["/" + member.name.strip("/")] = entry
    layers.append(dict(sorted(entries.items())))
json.dump({"config": config, "layers": layers}, sys.stdout, indent=1, sort_keys=True)
print()

"""The registry of what is published, and where inputs lie."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from onestep.inputs import input_filename, kept_at, read_registry

REGISTRY = read_registry()


def test_the_registry_has_all_that_the_paper_needs():
    wanted = {f"edm-cifar10-32x32-{labels}-{kind}" for labels in ("cond", "uncond") for kind in ("vp", "ve")}
    wanted |= {f"edm-{data}-64x64-uncond-{kind}" for data in ("ffhq", "afhqv2") for kind in ("vp", "ve")}
    wanted |= {"edm-imagenet-64x64-cond-adm", "adm-ref-imagenet-64x64", "class-embeddings-imagenet", "lpips-vgg"}
    wanted |= {f"fid-ref-{data}" for data in ("cifar10-32x32", "ffhq-64x64", "afhqv2-64x64", "imagenet-64x64")}
    wanted |= {"inception-2015-12-05", "clip-vit-b-32", "dinov2-vit-l-14", "vgg16_bn.tv_in1k"}
    wanted |= {"tf_efficientnet_lite0.in1k", "deit_base_distilled_patch16_224.fb_in1k"}
    wanted |= {"cifar10", "afhqv2", "ffhq", "imagenet"}
    wanted |= {"d2o-cifar-uncond-f", "d2o-cifar-cond-f", "d2o-ffhq-f", "d2o-afhqv2", "d2o-imagenet-f"}
    assert wanted <= REGISTRY.keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_an_entry_says_where_it_is_and_under_which_terms(name):
    entry = REGISTRY[name]
    assert entry.licence
    assert bool(entry.addresses) != bool(entry.by_hand)
    assert all(urlsplit(address).scheme == "https" for address in entry.addresses)
    assert entry.size is None or entry.size > 0
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256 or "0" * 64)
    assert re.fullmatch(r"[0-9a-f]{8}", entry.sha256_begins or "0" * 8)
    assert re.fullmatch(r"[0-9a-f]{32}", entry.md5 or "0" * 32)


def test_filenames_are_plain_and_differ():
    names = [entry.filename for entry in REGISTRY.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)


@pytest.mark.parametrize(
    ("source", "filename", "kept"),
    [
        ({"package": "p", "path": "a/b.gz"}, "b.gz", None),
        ({"file": "/data/x.zip"}, "x.zip", "/data/x.zip"),
        ({"file": "absent/train/"}, "train.folder", "absent/train"),
        ({"file": "."}, ".folder", "."),
        ({"url": "https://h/a/x%20y.bin?download=1"}, "x y.bin", "inputs/name/x y.bin"),
        ({"published": "cifar10"}, "cifar-10-python.tar.gz", "inputs/cifar-10-python.tar.gz"),
        ({"published": "imagenet"}, "imagenet.folder", "inputs/imagenet"),
        ({"published": "d2o-ffhq-f"}, "ffhq_d2o_f.pkl", "inputs/ffhq_d2o_f.pkl"),
    ],
)
def test_what_an_input_is_called_and_where_it_is_kept(source, filename, kept):
    assert input_filename(source) == filename
    assert kept is None or str(kept_at(source, name="name")) == kept

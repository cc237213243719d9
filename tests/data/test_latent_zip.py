"""Archives of latents in EDM2's format: written, read, kept in a cache, and refused where they are damaged."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from autoencoder_folders import CODEC, small_folder
from onestep.autoencoders.kl import KL
from onestep.data._archive import origin_of, prepare
from onestep.data._batches import IndexedZip, decoded, opened
from onestep.data._opening import open_archive
from onestep.data.encoded import Encoded
from onestep.data.image_zip import ImageZip
from onestep.data.latent_zip import LatentZip

IMAGES = 20


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """An archive of pixels in three classes."""
    folder = tmp_path_factory.mktemp("pixels")

    class Pixels:
        resolution, channels, classes, class_names, unreadable_share = 16, 1, 3, ("a", "b", "c"), 0.0

        def __len__(self):
            return IMAGES

        def __getitem__(self, index):
            return np.random.default_rng(index).integers(0, 256, (1, 16, 16), dtype=np.uint8), index % 3

    prepare(Pixels(), target=folder / "pixels.zip")
    return folder / "pixels.zip"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("vae") / "vae", seed=1)


def _encoded(pixels, vae, **options):
    return Encoded(source=pixels, codec=CODEC, codec_weights=vae, **options)


@pytest.fixture(scope="module")
def archive(pixels, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    prepare(_encoded(pixels, vae), target=folder / "latents.zip")
    return folder / "latents.zip"


def test_the_format_is_that_of_edm2(pixels, vae, archive):
    with zipfile.ZipFile(archive) as members:
        labels = json.loads(members.read("dataset.json"))
        names = [name for name in members.namelist() if name != "dataset.json"]
        first = np.load(io.BytesIO(members.read(names[0])))
        assert all(member.compress_type == zipfile.ZIP_STORED for member in members.infolist())
    assert names[1] == "00000/img00000001.npy" and len(names) == IMAGES
    assert labels["labels"] == [[name, index % 3] for index, name in enumerate(names)]
    assert first.dtype == np.float32 and first.shape == (8, 8, 8)
    codec = KL(weights=vae, latents="edm2")
    assert labels["codec"] == dict(codec.origin)
    images, classes = ImageZip(source=pixels).read_all()
    found, same = LatentZip(source=archive).read_all()
    import torch

    assert np.allclose(found, codec.moments(torch.from_numpy(images)), atol=1e-5) and (classes == same).all()


def test_the_card_has_the_statistics_of_draws(pixels, vae, tmp_path):
    card = prepare(_encoded(pixels, vae), target=tmp_path / "latents.zip", shard=7)
    moments = LatentZip(source=tmp_path / "latents.zip").read_all()[0]
    mean, deviation = moments[:, :4].astype(float), moments[:, 4:].astype(float)
    assert card["latent_mean"] == pytest.approx(mean.mean(axis=(0, 2, 3)))
    total = (mean**2 + deviation**2).mean(axis=(0, 2, 3)) - mean.mean(axis=(0, 2, 3)) ** 2
    assert card["latent_std"] == pytest.approx(np.sqrt(total))
    assert (card["images"], card["resolution"], card["channels"], card["classes"]) == (IMAGES, 8, 4, 3)
    assert (tmp_path / "latents.png").exists()


def test_the_bytes_depend_on_neither_shards_nor_a_resumption(pixels, vae, archive, tmp_path):
    reader, target = _encoded(pixels, vae), tmp_path / "latents.zip"
    origin = origin_of(reader, pixels, options={"codec": CODEC}, code="")
    assert origin["codec"] == reader.codec

    class Failing:
        def __getattr__(self, name):
            return getattr(reader, name)

        def __len__(self):
            return len(reader)

        def __getitem__(self, index):
            if index == 11:
                raise OSError("the machine stops")
            return reader[index]

    with pytest.raises(OSError):
        prepare(Failing(), target=target, origin=origin, shard=5)
    assert not target.exists()
    prepare(reader, target=target, origin=origin, shard=5)
    assert target.read_bytes() == archive.read_bytes()


def test_mirror_images_follow_their_images(pixels, vae, archive):
    both, one = _encoded(pixels, vae, mirrored=True), LatentZip(source=archive)
    assert len(both) == 2 * IMAGES and both[6][1] == both[7][1] == one[3][1]
    assert np.allclose(both[6][0], one[3][0], atol=1e-5) and not np.allclose(both[7][0], both[6][0], atol=1e-2)


def test_an_archive_from_outside_is_prepared_again(archive, tmp_path):
    """Of other names, without the record of a codec, deflated, as another tool may write it."""
    whole = LatentZip(source=archive)
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("dataset.json", json.dumps({"labels": None}))
        for index in range(4):
            file = io.BytesIO()
            np.save(file, whole[index][0])
            other.writestr(f"deep/er/{index}.npy", file.getvalue())
    found = LatentZip(source=tmp_path / "other.zip")
    assert found.codec is None and found.classes == 0 and len(found) == 4
    assert isinstance(open_archive(tmp_path / "other.zip"), LatentZip)
    card = prepare(found, target=tmp_path / "again.zip")
    assert card["classes"] == 0 and np.array_equal(LatentZip(source=tmp_path / "again.zip")[3][0], whole[3][0])


def test_many_latents_are_in_a_file_of_the_cache(archive, tmp_path):
    first = opened(archive, cache=tmp_path, in_memory=1000)
    later = opened(archive, cache=tmp_path, in_memory=1000)
    assert isinstance(first, LatentZip) and isinstance(later, IndexedZip)
    for key in ("channels", "resolution", "classes", "stored", "latents", "codec"):
        assert getattr(first, key) == getattr(later, key), key
    kept, held = decoded(later, cache=tmp_path, in_memory=1000), decoded(first, cache=None)
    assert kept.shape == (IMAGES, 8, 8, 8) and kept.dtype == held.dtype
    assert np.array_equal(kept, held) and len(list(tmp_path.glob("*.npy"))) == 1


def _member(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


_WHOLE = np.ones((8, 8, 8), np.float32)
_NAN, _BELOW = _WHOLE.copy(), _WHOLE.copy()
_NAN[0, 0, 0], _BELOW[7, 0, 0] = np.nan, -1
FAULTS = {
    "another type": _member(_WHOLE.astype(np.float64)),
    "objects": _member(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "an odd number of channels": _member(_WHOLE[:7]),
    "no square": _member(_WHOLE[:, :4]),
    "two axes": _member(_WHOLE[0]),
    "a scalar": _member(np.float32(1)),
    "the order of Fortran": _member(np.asfortranarray(_WHOLE)),
    "truncated": _member(_WHOLE)[:-1],
    "longer": _member(_WHOLE) + b"\0\0\0\0",
    "no header": b"\0" * 4096,
    "empty": b"",
    "NaN": _member(_NAN),
    "a deviation below zero": _member(_BELOW),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_members_are_refused_by_name(tmp_path, fault, place):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(2):
            archive.writestr(f"00000/img{index}.npy", FAULTS[fault] if index == place else _member(_WHOLE))
    with pytest.raises(ValueError, match=rf"damaged\.zip: (cannot read )?00000/img{place}\.npy.*Fix: ") as caught:
        LatentZip(source=path).read_all()
    assert "\n" not in str(caught.value)


def test_other_archives_are_refused(pixels, vae, tmp_path):
    with pytest.raises(ValueError, match=r"no latents"):
        LatentZip(source=pixels)
    (tmp_path / "no.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError):
        open_archive(tmp_path / "no.zip")
    with pytest.raises(ValueError, match="channels"):
        Encoded(source=pixels, codec=CODEC, codec_weights=small_folder(tmp_path / "rgb", in_channels=3, out_channels=3))
    with pytest.raises(ValueError, match=r"codec.*Fix: give --codec"):
        Encoded(source=pixels, codec=CODEC)

"""What is used of an image, and which images: regions, several folders, single files, lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from utils.folders import find_files, read_folder
from utils.images import MAX_TILES, ImageError, boxes, read_image, read_squares

RNG = np.random.default_rng(0)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_tiles_are_squares_that_cover_the_image_and_overlap(width, height):
    short, long = sorted((width, height))
    if 1 + (long - short) / (0.75 * short) > MAX_TILES:
        with pytest.raises(ImageError, match=f"{width}x{height} pixels would be .* cut it up"):
            boxes(width, height, "tiles")
        return
    tiles = np.array(boxes(width, height, "tiles"))
    assert (tiles[:, 2:] - tiles[:, :2] == pytest.approx(short)) and tiles.min() == 0
    assert tiles[:, 2].max() == pytest.approx(width) and tiles[:, 3].max() == pytest.approx(height)
    starts = tiles[:, :2].max(axis=1)
    assert (np.diff(starts) <= 0.75 * short + 1e-6).all()
    assert len(tiles) == 1 or (len(tiles) - 2) * 0.75 * short < long - short


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (33, 100), (64, 64), (20, 10)])
def test_the_centre_is_what_pillow_crops(tmp_path, size):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    method = Image.Resampling.BOX if min(size) > 32 else Image.Resampling.BICUBIC
    expected = np.asarray(ImageOps.fit(image, (32, 32), method))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 32), expected)


@pytest.mark.parametrize("deep", [False, True])
def test_regions_of_a_wide_image(tmp_path, deep):
    """8 or 16 bits; blocks of 2x2 pixels that averaging leaves."""
    blocks = RNG.integers(0, 256, (32, 80), dtype=np.uint8)
    pixels = blocks.repeat(2, axis=0).repeat(2, axis=1)
    path = tmp_path / "a.png"
    Image.fromarray(pixels.astype(np.uint16) * 257 if deep else pixels).save(path)

    def read(region, side=32):
        squares, used = read_squares(path, side, region=region)
        squares = squares.to_bytes(65535) if deep else squares
        return squares[..., 0].astype(int), used

    tiles, used = read("tiles")
    assert len(tiles) == 3 and used == 1
    for tile, left in zip(tiles, (0, 24, 48), strict=True):
        np.testing.assert_allclose(tile, blocks[:, left : left + 32], atol=1)
    (whole,), used = read("whole")
    assert used == 1
    np.testing.assert_allclose(whole[:, ::2], pixels[::2].reshape(32, 32, 5).mean(-1)[:, ::2], 0, 1)
    (centre,), used = read("centre")
    assert used == pytest.approx(32 / 80)
    np.testing.assert_allclose(centre, blocks[:, 24:56], atol=1)
    np.testing.assert_array_equal(read("centre", None)[0][0], pixels)
    white = 65535 if deep else None
    second = read_image(path, 32, region="tiles", square=1, white=white)[..., 0]
    np.testing.assert_array_equal(second, tiles[1])


def test_the_camera_turned_on_its_side_has_tiles_that_stand(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = RNG.integers(0, 256, (64, 32), dtype=np.uint8)
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "a.png", exif=exif)
    squares, _ = read_squares(tmp_path / "a.png", 32, region="tiles")
    np.testing.assert_array_equal(squares[0][..., 0], pixels[:32])
    np.testing.assert_array_equal(squares[-1][..., 0], pixels[32:])


def save(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0]), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("size", [(903, 516), (516, 903), (1399, 799)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_has_the_same_tiles_at_every_size(size, orientation, tmp_path):
    """Large ones are decoded at a fraction, whose sides are rounded."""
    ramp = np.broadcast_to(np.linspace(0, 255, size[0]), size[::-1]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp).save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole = read_image(tmp_path / "a.jpg", None)
    places = boxes(whole.shape[1], whole.shape[0], "tiles")
    for side in (16, 32, 64, 256):
        squares, used = read_squares(tmp_path / "a.jpg", side, region="tiles")
        assert len(squares) == len(places) and used == 1
        for square, (left, top, right, bottom) in zip(squares, places, strict=True):
            part = whole[round(top) : round(bottom), round(left) : round(right)]
            assert square.mean() == pytest.approx(part.mean(), abs=4)


def test_a_folder_of_tiles_knows_whose_they_are(tmp_path):
    sizes = {"a.png": (32, 32), "b.png": (80, 32), "c.png": (32, 56)}
    for name, size in sizes.items():
        save(tmp_path / name, size)
    folder = read_folder(tmp_path, 32, region="tiles", verbose=0)
    assert folder.first.tolist() == [0, 1, 4] and len(folder.images) == 6
    assert folder.lowest(np.array([5.0, 3, 1, 2, 9, 8])).tolist() == [0, 2, 5]
    part = folder.part(np.array([0, 2]))
    assert [path.name for path in part.paths] == ["a.png", "c.png"]
    assert part.first.tolist() == [0, 1]
    np.testing.assert_array_equal(part.images, folder.images[[0, 4, 5]])


@pytest.mark.parametrize("size, warned", [((40, 32), False), ((41, 32), True), ((41, 20), True)])
def test_much_that_is_not_looked_at_is_warned_of(tmp_path, size, warned):
    """A fifth of 40x32 pixels, and more."""
    save(tmp_path / "a.png", size)
    remarks = read_folder(tmp_path, 32, verbose=0).remarks
    assert len(remarks) == warned and all("--region whole or tiles" in each for each in remarks)
    assert not read_folder(tmp_path, 32, region="whole", verbose=0).remarks


def test_several_folders_and_files_each_once(tmp_path):
    for name in ("a/1.png", "a/sub/2.png", "b/3.png", "4.png"):
        save(tmp_path / name, (8, 8))
    sources = [tmp_path / name for name in ("4.png", "a/sub", "a", "b/3.png", "b", "a/1.png")]
    found, _ = find_files(*sources)
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["4.png", "a/sub/2.png", "a/1.png", "b/3.png"]
    with pytest.raises(ImageError, match=r"gone\.png is no folder and no file"):
        find_files(tmp_path / "a", tmp_path / "gone.png")
    gone = tmp_path / "gone.png"
    folder = read_folder([tmp_path / "4.png", gone], 8, strict=False, verbose=0)
    assert folder.paths == [tmp_path / "4.png"] and [path for path, _ in folder.skipped] == [gone]
    with pytest.raises(ImageError, match="the list holds no readable image"):
        read_folder([], 8, verbose=0)

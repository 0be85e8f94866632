"""Odd pictures as they are in use, each with whether its pixels are whole: for pictures_test.py."""

import io
import struct
import zlib

from PIL import Image

SIZE = (37, 29)


def picture(mode="RGB"):
    image = Image.new("RGB", SIZE)
    image.putdata([((x * 5) % 256, (y * 7) % 256, (x * y) % 256) for y in range(SIZE[1]) for x in range(SIZE[0])])
    return image.convert(mode)


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def webps():
    """Yields (name, bytes, whole)."""
    lossy = saved(picture(), "WEBP", quality=90)
    yield "lossy", lossy, True
    yield "lossless", saved(picture(), "WEBP", lossless=True), True
    for mode in ("L", "RGBA"):
        yield "mode-" + mode, saved(picture(mode), "WEBP", lossless=True), True
    transparent = picture("RGBA")
    transparent.putalpha(77)
    yield "alpha", saved(transparent, "WEBP", quality=90), True
    for cut in (3, 11, 12, 20, 30, len(lossy) // 2, len(lossy) - 2):
        yield f"cut-{cut}", lossy[:cut], False
    yield "after-data", lossy + b"more", True
    yield "animated", saved(picture(), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")]), False


def turned_pictures():
    """Yields (name, bytes): each orientation that EXIF knows in each format."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        for format, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
            yield f"turned-{orientation}.{format.lower()}", saved(picture(), format, exif=exif.tobytes(), **options)


# ---- PNG


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def chunks(png):
    at, found = 8, []
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def joined(parts):
    return b"\x89PNG\r\n\x1a\n" + b"".join(part if isinstance(part, bytes) else chunk(*part) for part in parts)


def with_data(png, change):
    return joined([(kind, change(data)) if kind == b"IDAT" else (kind, data) for kind, data in chunks(png)])


def odd_pngs():
    """Yields (name, bytes, whole)."""
    png = saved(picture(), "PNG")
    parts = chunks(png)
    idat = next(i for i, (kind, _) in enumerate(parts) if kind == b"IDAT")
    end = png.index(b"IEND") - 4
    data = parts[idat][1]
    yield "plain", png, True
    for mode in ("L", "P", "1", "LA", "RGBA"):
        yield "mode-" + mode, saved(picture(mode), "PNG"), True
    yield "no-end", png[:end], True
    for left in (1, 4, 7, 8, 11):
        yield f"end-cut-to-{left}", png[: end + left], True
    yield "end-with-wrong-crc", joined(parts[:-1] + [(b"IEND", b"", 1)]), True
    yield "end-is-garbage", png[:end] + b"garbage that is no chunk", True
    yield "zeros-for-end", png[:end] + bytes(64), True
    yield "more-after-end", png + b"and more", True
    yield "two-pictures", png + png, True
    yield "no-crc-of-data", png[: end - 4], True
    yield "crc-of-data-cut", png[: end - 2], True
    yield "no-checksum-of-data", png[: end - 8], True
    yield "data-cut", png[: end - 9 - 12], False
    yield "data-halved", png[: end // 2], False
    yield "only-a-header", png[: png.index(b"IDAT") - 4], False
    yield "data-with-wrong-crc", joined(parts[:idat] + [(b"IDAT", data, 1)] + parts[idat + 1 :]), True
    yield "data-with-wrong-checksum", with_data(png, lambda d: d[:-4] + b"abcd"), None
    yield "data-and-more", with_data(png, lambda d: d + b"more"), True
    flipped = bytearray(png)
    flipped[png.index(b"IDAT") + 40] ^= 4
    yield "data-changed", bytes(flipped), False
    middle = len(data) // 2
    split = parts[:idat] + [(b"IDAT", data[:middle]), (b"IDAT", data[middle:])] + parts[idat + 1 :]
    yield "split", joined(split), True
    yield "split-no-end", joined(split[:-1]), True
    yield "split-last-lost", joined(parts[:idat] + [(b"IDAT", data[:middle])] + parts[idat + 1 :]), False
    yield "empty-data-between", joined(split[: idat + 1] + [(b"IDAT", b"")] + split[idat + 1 :]), True
    yield "text", joined(parts[:1] + [(b"tEXt", b"Comment\0hello")] + parts[1:]), True
    yield "text-with-wrong-crc", joined(parts[:1] + [(b"tEXt", b"Comment\0hello", 1)] + parts[1:]), True
    yield "text-after-data-cut", joined(parts[:-1] + [chunk(b"tEXt", b"Comment\0hello")[:-6]]), True
    yield "unknown-chunk", joined(parts[:1] + [(b"abCd", b"what")] + parts[1:]), True
    yield "bad-profile", joined(parts[:1] + [(b"iCCP", b"p\0\0not zlib")] + parts[1:]), True
    yield "wrong-gamma", joined(parts[:1] + [(b"gAMA", b"\0\0\0\0")] + parts[1:]), True
    header = bytearray(parts[0][1])
    yield "header-with-wrong-crc", joined([(b"IHDR", bytes(header), 1)] + parts[1:]), False


# ---- JPEG


def scans(jpeg):
    """Places of the start-of-scan markers."""
    found, at = [], 0
    while (at := jpeg.find(b"\xff\xda", at)) >= 0:
        found.append(at)
        at += 2
    return found


def with_scan_bytes(jpeg, scan, values):
    at = scans(jpeg)[scan]
    (length,) = struct.unpack(">H", jpeg[at + 2 : at + 4])
    return jpeg[: at + 2 + length - 3] + bytes(values) + jpeg[at + 2 + length :]


def progressive_scans(jpeg):
    """What comes before the scans of a progressive file, and each scan with its tables."""
    at, begin, found = 2, None, []
    while jpeg[at + 1] != 0xD9:
        marker, (length,) = jpeg[at + 1], struct.unpack(">H", jpeg[at + 2 : at + 4])
        if begin is None and marker in (0xC4, 0xDA):
            begin = at
        at += 2 + length
        if marker == 0xDA:
            while jpeg[at] != 0xFF or jpeg[at + 1] == 0:
                at += 1
            found.append(jpeg[begin:at])
            begin = None
    return jpeg[: jpeg.index(found[0])], found


def with_scans(jpeg, order):
    before, found = progressive_scans(jpeg)
    return before + b"".join(found[i] for i in order) + b"\xff\xd9"


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def odd_jpegs():
    """Yields (name, bytes, whole)."""
    jpeg = saved(picture(), "JPEG", quality=90)
    yield "plain", jpeg, True
    yield "grey", saved(picture("L"), "JPEG", quality=90), True
    yield "sampled", saved(picture(), "JPEG", quality=90, subsampling=2), True
    progressive = saved(picture(), "JPEG", quality=90, progressive=True)
    yield "progressive", progressive, True
    restarts = saved(picture(), "JPEG", quality=90, restart_marker_blocks=2)
    yield "restarts", restarts, True
    for kind, base in (("", jpeg), ("grey-", saved(picture("L"), "JPEG")), ("restarts-", restarts)):
        yield kind + "zero-scan-bytes", with_scan_bytes(base, 0, (0, 0, 0)), True
        yield kind + "odd-scan-bytes", with_scan_bytes(base, 0, (0, 63, 1)), True
    yield "no-end", jpeg[:-2], True
    yield "half-an-end", jpeg[:-1], True
    yield "zero-scan-bytes-no-end", with_scan_bytes(jpeg, 0, (0, 0, 0))[:-2], True
    yield "progressive-no-end", progressive[:-2], True
    yield "data-cut", jpeg[:-40], False
    yield "data-halved", jpeg[: (scans(jpeg)[0] + len(jpeg)) // 2], False
    yield "no-data", jpeg[: scans(jpeg)[0] + 14], False
    for number, place in enumerate(scans(progressive)[1:], 1):
        yield f"progressive-{number}-scans", progressive[:place], False
    last = progressive.rindex(b"\xff\xda")
    yield "progressive-last-cut", progressive[: (last + len(progressive)) // 2], False
    order = list(range(len(scans(progressive))))
    yield "progressive-mean-later", with_scans(progressive, [1, 0] + order[2:]), True
    yield "progressive-mean-twice", with_scans(progressive, [0, 0] + order[1:]), True
    yield "progressive-first-bits-lost", with_scans(progressive, order[:1] + order[2:]), False
    rst = restarts.rindex(b"\xff\xd0")
    yield "restart-lost", restarts[:rst] + restarts[rst + 2 :], False
    yield "restarts-cut-at-one", restarts[:rst], False
    yield "restarts-cut-after-one", restarts[: rst + 2], False
    yield "bytes-before-end", jpeg[:-2] + b"junk\xff\xd9", True
    yield "bytes-after-end", jpeg + b"junk", True
    yield "two-pictures", jpeg + jpeg, True
    yield "fill-before-end", jpeg[:-2] + b"\xff" * 8 + jpeg[-2:], True
    yield "bytes-between-segments", jpeg[:2] + jpeg[2:20] + b"junk" + jpeg[20:], True
    yield "unknown-revision", jpeg.replace(b"JFIF\0\1\1", b"JFIF\0\7\7"), True
    yield "no-jfif", jpeg[:2] + jpeg[20:], True
    yield "adobe-transform", jpeg[:2] + segment(0xEE, b"Adobe\0d\0\0\0\0\7") + jpeg[20:], True
    yield "bad-exif", jpeg[:2] + segment(0xE1, b"Exif\0\0nothing") + jpeg[2:], True
    yield "bad-profile", jpeg[:2] + segment(0xE2, b"ICC_PROFILE\0\7\1what") + jpeg[2:], True
    yield "comment", jpeg[:2] + segment(0xFE, b"hello") + jpeg[2:], True
    yield "segment-after-data", jpeg[:-2] + segment(0xFE, b"hello") + jpeg[-2:], True
    yield "segment-after-data-cut", jpeg[:-2] + segment(0xFE, b"hello")[:-3], True
    yield "picture-after-data", jpeg[:-2] + jpeg[2:], None

"""What a file is by its first bytes, if it is not the image that its name says."""

HEAD_BYTES = 160
DAMAGED = "a damaged"  # how the description of an image begins
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_HINT = "install tfsimclr[heif] to read it, or convert it to JPEG"
_AVIF = f"{DAMAGED} AVIF image, or one that this Pillow cannot read"
_NO_CONTENT = "only zeros: its download or copy failed"
# First bytes -> what that is.
_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the image: git lfs pull"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"8BPS", "a Photoshop document: save it as PNG"),
    (b"\x93NUMPY", "a NumPy array: save it as PNG or TIFF"),
    (b"\x89HDF", "an HDF5 file: save its images as PNG or TIFF"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image: save it as TIFF"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image: convert it to JPEG or PNG"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image: convert it to JPEG or PNG"),
    (b"\xff\x0a", "a JPEG XL image: convert it to JPEG or PNG"),
    (b"\0\0\x01\0", "an icon"),
    (b"\0\x05\x16\x07", "the description of a file by macOS and not the file"),
)
_IMAGE_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


def describe(head: bytes, has_heif: bool = False) -> str:
    """Returns what a file with these first bytes is, or an empty string.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of a shorter file.
        has_heif: Whether HEIC images can be read.
    """
    if not any(head):
        return _NO_CONTENT if head else "empty (0 bytes)"
    for start, description in _STARTS:
        if head.startswith(start):
            return description
    for start, name in _IMAGE_STARTS.items():
        if head.startswith(start):
            return f"{DAMAGED} {name} image"
    return _container(head, has_heif) or _text(head)


def _container(head: bytes, has_heif: bool) -> str:
    """Returns what a file is that has its mark behind the first bytes."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in _HEIF_BRANDS:
            return (
                f"{DAMAGED} HEIC image" if has_heif else f"a HEIC image: {_HEIF_HINT}"
            )
        return _AVIF if brand in _AVIF_BRANDS else "a video"
    if head.startswith(b"RIFF"):
        return f"{DAMAGED} WebP image" if head[8:12] == b"WEBP" else "a sound or video"
    if head[128:132] == b"DICM":
        return "a DICOM image: save it as PNG or TIFF"
    return ""


def _text(head: bytes) -> str:
    """Returns what kind of text a file is."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "a web page (HTML) under the name of an image: download it again"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing or XML: save it as PNG"
    if text.startswith((b"{", b"[")):
        return "JSON, such as a server's error message: download it again"
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return "text and not an image" if is_text else ""

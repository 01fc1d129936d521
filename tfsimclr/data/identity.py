"""Which files a store was made of, so that data that moved or was copied is known.

Reading all files takes long, so three marks are compared, from the cheapest to the
surest: the stamp, which holds on one machine and for one folder; names, sizes and
modification times, which survive `mv`, `rsync -a` and `cp -a`; and checksums of the
files' contents.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping, Sequence

from tfsimclr import files

_THREADS = min(16, os.cpu_count() or 1)


class Identity:
    """The identity of a source's files and of how they are used.

    Args:
        names: Relative name of every file, with its split and label.
        paths: The files.
        root: Folder of the files.
        settings: All else that the prepared images depend on, such as their size.

    Attributes:
        names: Digest of names, sizes and settings. Two data sets may share it.
        times: Digest of `names` and the modification times. Empty if these do not
            tell: an unpacked archive has whole seconds, often all the same.
        stamp: Digest of all that the file system knows of the files at this place.
        root: Digest of the folder's path.
    """

    def __init__(
        self, names: Sequence[str], paths: Sequence[str], root: str, settings: str
    ):
        self._files = list(zip(names, paths, strict=True))
        self.root = files.sha256(os.fsencode(os.path.realpath(root)))
        of_names, of_times = hashlib.sha256(), hashlib.sha256()
        of_places = hashlib.sha256(self.root.encode())
        has_fine_times = bool(self._files)
        of_names.update(settings.encode(errors="surrogateescape"))
        for name, path in self._files:
            try:
                status = os.stat(path)
                size, modified = status.st_size, status.st_mtime_ns
                place = (status.st_dev, status.st_ino, status.st_ctime_ns)
            except OSError:  # a broken link; it is named when it is read
                size, modified, place = -1, -1, (-1, -1, -1)
            has_fine_times &= modified == -1 or modified % 1_000_000 != 0
            of_names.update(repr((name, size)).encode())
            of_times.update(repr(modified).encode())
            of_places.update(repr((modified, place)).encode())
        self.names = of_names.hexdigest()
        self.times = (
            files.sha256(self.names, of_times.hexdigest()) if has_fine_times else ""
        )
        self.stamp = files.sha256(self.names, of_places.hexdigest())
        self._content = ""

    def content(self, checksums: Mapping[str, str] | None = None) -> str:
        """Returns a digest of names and contents; reads the files if it must.

        Args:
            checksums: SHA-256 of files that are already known, by path.
        """
        if not self._content:
            known = dict(checksums or {})
            rest = [path for _, path in self._files if path not in known]
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                known.update(
                    zip(rest, pool.map(files.sha256_of_file, rest), strict=True)
                )
            digest = hashlib.sha256(self.names.encode())
            for _, path in self._files:
                digest.update(f"{known[path]}\n".encode())
            self._content = digest.hexdigest()
        return self._content

    def description(self, checksums: Mapping[str, str]) -> dict[str, str]:
        """Returns what a store keeps."""
        return {
            "names": self.names,
            "times": self.times,
            "stamp": self.stamp,
            "root": self.root,
            "content": self.content(checksums),
        }

    def may_match(self, kept: Mapping[str, str]) -> bool:
        """Returns whether a store may be of these files, by names and sizes.

        Args:
            kept: `description` of the store.
        """
        return kept["names"] == self.names

    def surely_matches(self, kept: Mapping[str, str], stamps: Sequence[str]) -> bool:
        """Returns whether a store is of these files; if not, `content` tells.

        Args:
            kept: `description` of the store.
            stamps: Stamps of places where the same files were found before.
        """
        if self.stamp in (kept["stamp"], *stamps):
            return True
        # In the same folder, a changed stamp with the old times is suspicious: some
        # programs set the old time after they have edited a file.
        has_moved = kept["root"] != self.root
        return bool(self.times) and kept["times"] == self.times and has_moved

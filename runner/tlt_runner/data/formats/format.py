"""Parts of a label format, and the data set's root in which its reader looks for its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.writer import Writer
from tlt_runner.data.sample import Reader
from tlt_runner.errors import NotFoundError, RunnerError
from tlt_runner.storage import Storage, join, relative


@dataclass(frozen=True)
class DatasetRoot:
    """The root of a data set (``spec.dataset.uri``).

    Attributes:
        dataset: The data set.
        storage: Reads its files.
    """

    dataset: Dataset
    storage: Storage

    def folder(self, path: str) -> SourceFolder:
        """Open a folder below the root.

        Raises:
            RunnerError: ``DatasetNotFound``, saying what is there instead.
        """
        name = relative(path)
        try:
            folder = self.storage.folder(join(self.dataset.uri, name))
            return SourceFolder(folder, name, self.storage.mount(self.dataset.uri))
        except NotFoundError as error:
            raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error

    def file(self, path: str) -> Path:
        """Fetch a file below the root.

        Raises:
            NotFoundError: There is none; the message says what is there instead.
        """
        return self.storage.fetch(join(self.dataset.uri, path))


@dataclass(frozen=True)
class Format:
    """A label format: how a data set of it is read, how a folder of it is written.

    Attributes:
        open_reader: Makes the reader of a data set's images and labels; both places are relative to the root.
        writer: Writes the labels of a new folder.
        images: Default place of the images, relative to the root (``spec.dataset.images``).
        labels: Default place of the labels (``spec.dataset.labels``).
    """

    open_reader: Callable[[DatasetRoot, str, str], Reader]
    writer: type[Writer]
    images: str
    labels: str

"""The readers by the `kind` of their configuration."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from storage.datasets.arsenic_skin import ArsenicSkinSource, list_arsenic_skin
from storage.datasets.camelyon16 import Camelyon16Source, list_camelyon16
from storage.datasets.chestxray14 import ChestXray14Source, list_chestxray14
from storage.datasets.cifar10 import Cifar10Source, list_cifar10
from storage.datasets.dicom_folder import DicomFolderSource, list_dicom_folder
from storage.datasets.folder import FolderSource, list_folder
from storage.datasets.hands import HandsSource, list_hands
from storage.datasets.isic2018 import Isic2018Source, list_isic2018
from storage.datasets.isic2020 import Isic2020Source, list_isic2020
from storage.datasets.isic_archive import IsicArchiveSource, list_isic_archive
from storage.datasets.medmnist import MedMnistSource, list_medmnist
from storage.datasets.mnist import MnistSource, list_mnist
from storage.datasets.sd198 import Sd198Source, list_sd198
from storage.datasets.source import SourceItem
from storage.datasets.svhn import SvhnSource, list_svhn
from storage.datasets.textures import TextureSource, list_texture

AnySource = Annotated[
    FolderSource
    | IsicArchiveSource
    | Sd198Source
    | ArsenicSkinSource
    | Isic2018Source
    | Isic2020Source
    | HandsSource
    | Camelyon16Source
    | ChestXray14Source
    | DicomFolderSource
    | Cifar10Source
    | SvhnSource
    | MedMnistSource
    | MnistSource
    | TextureSource,
    Field(discriminator="kind"),
]

_READERS: dict[type, Callable[[Any], list[SourceItem]]] = {
    FolderSource: list_folder,
    IsicArchiveSource: list_isic_archive,
    Sd198Source: list_sd198,
    ArsenicSkinSource: list_arsenic_skin,
    Isic2018Source: list_isic2018,
    Isic2020Source: list_isic2020,
    HandsSource: list_hands,
    Camelyon16Source: list_camelyon16,
    ChestXray14Source: list_chestxray14,
    DicomFolderSource: list_dicom_folder,
    Cifar10Source: list_cifar10,
    SvhnSource: list_svhn,
    MedMnistSource: list_medmnist,
    MnistSource: list_mnist,
    TextureSource: list_texture,
}


def list_items(source: AnySource) -> list[SourceItem]:
    """The items of a source; raises `SourceError` where it is not as its data set is downloaded."""
    return _READERS[type(source)](source)

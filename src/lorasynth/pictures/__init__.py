"""Pictures and their subjects: photos in folders, tar and Parquet files; avatars that are drawn."""

from lorasynth.pictures import captions
from lorasynth.pictures.avatars import AvatarSubjects
from lorasynth.pictures.contract import Subject, SubjectSource
from lorasynth.pictures.files import read_photo, to_image
from lorasynth.pictures.folders import FolderSubjects, pictures_in
from lorasynth.pictures.given import Photo, as_photo
from lorasynth.pictures.sources import subjects_in

__all__ = [
    "AvatarSubjects",
    "FolderSubjects",
    "Photo",
    "Subject",
    "SubjectSource",
    "as_photo",
    "captions",
    "pictures_in",
    "read_photo",
    "subjects_in",
    "to_image",
]

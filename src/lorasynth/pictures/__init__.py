"""Pictures and their subjects: folders of photos, and the avatars that the embedded model draws."""

from lorasynth.pictures import captions
from lorasynth.pictures.avatars import AvatarSubjects
from lorasynth.pictures.contract import Subject, SubjectSource
from lorasynth.pictures.files import pictures_in, read_photo, read_picture, to_image
from lorasynth.pictures.folders import FolderSubjects

__all__ = [
    "AvatarSubjects",
    "FolderSubjects",
    "Subject",
    "SubjectSource",
    "captions",
    "pictures_in",
    "read_photo",
    "read_picture",
    "to_image",
]

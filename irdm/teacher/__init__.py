"""Trains the teacher of the captioned world, a klein of its own: first its text encoder, then its transformer."""

from irdm.teacher.config import TeacherConfig
from irdm.teacher.train import train_teacher

__all__ = ["TeacherConfig", "train_teacher"]

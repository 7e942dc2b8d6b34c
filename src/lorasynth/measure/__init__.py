"""Measures: likeness, prompt following, diversity, memorisation."""

from lorasynth.measure.judge import AttributeJudge, JudgeConfig

__all__ = ["AttributeJudge", "JudgeConfig"]

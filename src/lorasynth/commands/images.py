"""`lorasynth images`: images made with LoRA files."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import UseAppendAction, arg

from lorasynth.commands.shared import OfFamily, OfOtherBase, Repeated, WithBase
from lorasynth.core.command import Command, Out, Seeded
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import progress

if TYPE_CHECKING:
    from lorasynth.adapter import Factors
    from lorasynth.base import BaseModel


@dataclass(frozen=True, kw_only=True)
class Images(Command, Seeded, WithBase, OfOtherBase, OfFamily):
    """Make images with LoRA files; their metadata says that they are synthetic.

    Example: lorasynth images --lora me.safetensors --prompt "a portrait of sks, smiling" -o me.png

    Attributes:
        prompt: Text; repeatable.
        out: One sheet if it ends with .png, with a row for each prompt, else a folder.
        lora: LoRA file; several are added; none: the base model alone.
        region: Where in the image the LoRA file at the same place of the list acts, instead of
            adding them: left, right, top, bottom, or left,top,right,bottom as shares such as
            0,0,0.5,1; repeatable.
        strength: Multiplies what the LoRA files do.
        number: Images of each prompt.
        steps: Sampler steps; default: 20, of a distilled model as few as it takes.
        scheduler: Solver of diffusers, such as DPMSolverMultistepScheduler; default: DDIM for
            Stable Diffusion, else the model's own.
        guidance: Weight of the prompt; 1 for none (Z-Image: 0); default: 3, none in a distilled
            model.
        negative_prompt: What the images shall not show.
        width: In pixels; default: as --size.
        height: In pixels; default: as --size.
        guidance_side: Where the LoRA acts in guidance: at both sides, or at the prompt alone, as
            suits one that was trained on the base of a distilled model.
    """

    group: ClassVar[str] = "Use"

    prompt: UseAppendAction[tuple[str, ...]]
    out: Out
    lora: UseAppendAction[tuple[Path, ...]] = ()
    region: Repeated = ()
    strength: float = 1.0
    number: Annotated[int, Field(ge=1), arg(aliases=("-n",))] = 4
    steps: Annotated[int, Field(ge=1)] | None = None
    scheduler: str | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    width: Annotated[int, Field(ge=8)] | None = None
    height: Annotated[int, Field(ge=8)] | None = None
    guidance_side: Literal["both", "prompt"] = "both"

    def run(self) -> list[Path]:
        """Write the images; their paths."""
        from lorasynth.base import SamplingConfig
        from lorasynth.core.atomic import make_parent
        from lorasynth.images.png import contact_sheet, write_synthetic

        sheet = self.out.suffix.lower() == ".png"
        make_parent(self.out)
        model = self.load_base()
        if self.scheduler is not None:
            model.use_scheduler(self.scheduler)
        factors, regions = self._factors(model), tuple(map(_region, self.region))
        if regions and len(regions) != len(self.lora):
            raise ConfigError(
                f"--region is said for each of {len(self.lora)} files, or for none, but is said "
                f"for {len(regions)}"
            )
        prompts = [text for text in self.prompt for _ in range(self.number)]
        seeds = [self.seed + i for _ in self.prompt for i in range(self.number)]
        steps = self.steps or model.few_steps or SamplingConfig.steps
        config = SamplingConfig(
            steps=steps,
            guidance=self.guidance,
            height=self.height,
            width=self.width,
            negative_prompt=self.negative_prompt,
            guidance_side=self.guidance_side,
            regions=regions,
        )
        blocks = max(len(regions), 1)
        with progress("images, steps", len(prompts) * blocks * steps) as advance:
            images = model.sample(prompts * blocks, seeds * blocks, factors, config, advance)
        facts = {"Base": model.fingerprint, "Lora": ", ".join(path.name for path in self.lora)}
        if sheet:
            facts |= {"Description": "\n".join(self.prompt), "Seed": f"{self.seed} and following"}
            names = [shorten(text, 60) for text in self.prompt] if len(self.prompt) > 1 else ()
            write_synthetic(self.out, contact_sheet(images, self.number, names=names), facts)
            print(self.out)
            return [self.out]
        written = []
        for i, image in enumerate(images):
            path = self.out / f"{i // self.number:02d}-{seeds[i]:06d}.png"
            own = {"Description": prompts[i], "Seed": str(seeds[i])}
            write_synthetic(path, image, facts | own)
            print(path)
            written.append(path)
        return written

    def _factors(self, model: "BaseModel") -> "Factors | None":
        """All LoRA files: their sum as a stack of one, or with regions a stack; None without any.

        Raises:
            LorasynthError: one is of another base model.
        """
        from lorasynth.adapter import map_factors, stack
        from lorasynth.adapter.addition import add, alike
        from lorasynth.adapter.families import family_named
        from lorasynth.adapter.files import read
        from lorasynth.base.compatibility import require_made_for

        adapters = []
        for file in self.lora:
            adapter = read(file, family_named(self.family)).adapter
            if not self.allow_other_base:
                require_made_for(model, adapter.metadata.base_fingerprint, f"LoRA file {file}")
            adapters.append(adapter.scaled(self.strength).to(model.dtype).factors)
        if self.region and adapters:
            return stack(alike(adapters))
        return map_factors(lambda part: part[None], add(adapters)) if adapters else None


#: Halves by their names.
_HALVES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}


def _region(text: str) -> tuple[float, float, float, float]:
    if text in _HALVES:
        return _HALVES[text]
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        left = right = 0.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ConfigError(
            f"--region must be {', '.join(_HALVES)}, or left,top,right,bottom as shares of the "
            f"sides such as 0,0,0.5,1, but is {text!r}"
        )
    return left, top, right, bottom

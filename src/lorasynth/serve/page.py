"""The page: photos in, a LoRA file and images out, in a browser, by the functions of the service.

Gradio keeps what is sent and offered as files.  They are in a folder that is given to it, in memory
where the system has such a place, and are deleted when their visitor leaves.
"""

import asyncio
import base64
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from gradio import processing_utils

from lorasynth.adapter.files import PROGRAMS
from lorasynth.core.errors import LorasynthError, escaped
from lorasynth.serve.config import PAGE, Limits
from lorasynth.serve.doctor import converted, findings
from lorasynth.serve.engine import Engine
from lorasynth.serve.jobs import Jobs
from lorasynth.serve.requests import (
    AskedImages,
    AskedLora,
    AskedRefine,
    RefusedError,
    asked_for,
    in_time,
)
from lorasynth.serve.workers import MadeImages, note

#: Seconds until what a visitor left is deleted, where the browser did not say that it left.
_KEPT = 3600

_HERE = Path(__file__).parent
_CONSENT = """<aside class="note" aria-label="Consent and privacy">
<strong>Only with consent.</strong> Make a LoRA of a person only if that person agreed, and never to
deceive. Photos stay in memory, are never stored, and are deleted when you close this page. Every
file and image says that it is synthetic.</aside>"""


@dataclass
class Visit:
    """What is kept of a visitor until the page is closed.

    Attributes:
        folder: of the files to download.
        sent: what the visitor sent.
        lora: the LoRA file that was made last; empty before.
        asked: how images of it are asked for.
        begun: when the visit began.
    """

    folder: Path
    sent: set[Path] = field(default_factory=set)
    lora: bytes = b""
    asked: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Delete it all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.sent:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # whose name is a hash of what was sent

    def place(self) -> Path:
        """The folder, which is there."""
        self.folder.mkdir(exist_ok=True)
        return self.folder

    def offer(self, name: str, data: bytes) -> gr.DownloadButton:
        """A button to download a file."""
        (self.place() / name).write_bytes(data)
        return _offered(self.folder / name)


def add_page(app: FastAPI, engine: Engine, jobs: Jobs, limits: Limits, folder: Path) -> None:
    """Put the page into the application; its files are kept in the folder."""

    async def refuse(*_: Any, **__: Any) -> str:
        text = "files are sent, and not fetched from an address"
        raise gr.Error(text, print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse  # a visitor may send one for a file
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )
    blocks = Page(engine, jobs, limits, folder).blocks()
    blocks.has_launched = True  # or else any path of this machine passes for a file that was sent
    gr.mount_gradio_app(
        app,
        blocks,
        PAGE,
        footer_links=[],
        run_history=False,  # which the browser would keep
        ssr_mode=False,
        show_error=False,
        theme=theme,
        css=(_HERE / "page.css").read_text(),
        head=f"<script>{(_HERE / 'page.js').read_text()}</script>",
    )

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse(f"{PAGE}/")


class Page:
    """What the page shows and does."""

    def __init__(self, engine: Engine, jobs: Jobs, limits: Limits, folder: Path) -> None:
        self._engine, self._jobs, self._limits, self._folder = engine, jobs, limits, folder
        self._visits: dict[str, Visit] = {}
        self._models = list(engine.models.values())
        names = dict.fromkeys(name for model in self._models for name in model["edits"])
        self._kinds = [name for name in names if _is_kind(name)]
        self._scales = [name for name in names if not _is_kind(name)]

    def _visit(self, request: gr.Request) -> Visit:
        for key, one in list(self._visits.items()):
            if time.monotonic() - one.begun > _KEPT:
                self._visits.pop(key).end()
        key = request.session_hash or ""
        if key not in self._visits:
            self._visits[key] = Visit(self._folder / secrets.token_hex(16))
        return self._visits[key]

    def leave(self, request: gr.Request) -> None:
        """Delete what is kept of a visitor."""
        if (visit := self._visits.pop(request.session_hash or "", None)) is not None:
            visit.end()

    def remember(self, request: gr.Request, *galleries: Any) -> None:
        """Note which files a visitor sent, so that they can be deleted."""
        self._visit(request).sent.update(*map(_paths, galleries))

    async def _ask(self, kind: str, asked: type[AskedLora], fields: Mapping[str, Any]) -> Any:
        made = await asked_for(asked, fields, self._limits, self._engine.models)
        async with in_time(self._limits.seconds):
            return await self._engine.do(kind, made)

    async def make(self, request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Make a LoRA file, and images with it."""
        same = gr.skip()
        yield _said("Making the LoRA …"), same, same, same
        try:
            visit, start = self._visit(request), time.perf_counter()
            fields, prompts = self._fields(values)
            lora = await self._ask("loras", AskedLora, fields)
            told = f"LoRA made in {time.perf_counter() - start:.2f} s."
            visit.lora, download = lora.data, visit.offer("lora.safetensors", lora.data)
            kept = {name: fields[name] for name in ("photos", "model", "format")}
            visit.asked = {**kept, "prompts": prompts, "image_seed": fields["seed"]}
            if not (self._engine.makes_images and prompts):
                yield _said(told), "", download, gr.Button(interactive=True)
                return
            yield _said(f"{told} Making {len(prompts)} images …"), same, download, same
            start = time.perf_counter()
            images = await self._ask("images", AskedImages, visit.asked | {"lora": lora.data})
            told += f" {len(prompts)} images in {time.perf_counter() - start:.1f} s."
            shown = _figures(prompts, {"": images})
            yield _said(told + _mean(images)), shown, download, gr.Button(interactive=True)
        except Exception as error:
            yield _refused(error), same, same, same

    def _fields(self, values: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
        """The fields of a request, and prompts."""
        photos, snap, prompts, model, strength, seed, form, other, share, kinds, *steps = values
        sent = [*_paths(photos), *([Path(snap)] if snap else [])]
        if not sent:
            raise RefusedError(422, "a LoRA needs a photo: add one first")
        edit = {name: by for name, by in zip(self._scales, steps, strict=True) if by}
        fields = {
            "photos": [path.read_bytes() for path in sent],
            "model": model,
            "strength": strength,
            "seed": int(seed or 0),
            "format": form,
            "other": [path.read_bytes() for path in _paths(other)],
            "share": share,
            "edit": edit | dict.fromkeys(kinds or [], 1.0),
        }
        return fields, [line.strip() for line in (prompts or "").splitlines() if line.strip()]

    async def refine(self, steps: float, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Train the LoRA on with the photos, and show images before and after."""
        visit, owner, same = self._visit(request), f"page {request.session_hash}", gr.skip()
        try:
            if not visit.lora:
                raise RefusedError(422, "there is no LoRA yet: make one first")
            fields = {name: visit.asked[name] for name in ("photos", "model", "format")}
            fields |= {"lora": visit.lora, "refine_steps": int(steps)}
            asked = await asked_for(AskedRefine, fields, self._limits, self._engine.models)
            job, start = self._jobs.submit(owner, asked), time.perf_counter()
            try:
                while (job := self._jobs.get(owner, job.id)).state in ("waiting", "running"):
                    yield _progress(job.step, job.steps), same, same
                    await asyncio.sleep(0.3)
                job, lora = self._jobs.result(owner, job.id)
            finally:  # also where the visitor stops it, or leaves
                self._jobs.cancel(owner, job.id)
            told = f"Refined in {time.perf_counter() - start:.0f} s. {_became(job.facts)}"
            download, shown = visit.offer("refined.safetensors", lora), same
            if visit.asked["prompts"]:
                yield _said(f"{told} Making images …"), same, download
                both = [visit.asked | {"lora": one} for one in (visit.lora, lora)]
                made = await asyncio.gather(*(self._ask("images", AskedImages, b) for b in both))
                named = dict(zip(("Before", "After"), made, strict=True))
                shown = _figures(visit.asked["prompts"], named)
            yield _said(told), shown, download
        except Exception as error:
            yield _refused(error), same, same

    def inspect(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Say what a LoRA file is."""
        nothing = gr.DownloadButton(value=None, interactive=False)
        if path is None:
            return "", "", nothing
        self._visit(request).sent.add(Path(path))
        try:
            return findings(Path(path)), "", nothing
        except Exception as error:
            return _refused(error, path), "", nothing

    def convert(self, path: str | None, program: str, request: gr.Request) -> tuple[Any, ...]:
        """Write a LoRA file as a program reads it."""
        try:
            if path is None:
                raise RefusedError(422, "there is no LoRA file yet: add one first")
            written, told = converted(Path(path), program, self._visit(request).place())
            return _said(told), _offered(written)
        except Exception as error:
            return _refused(error, path or ""), gr.skip()

    def blocks(self) -> gr.Blocks:
        """All of it, as Gradio shows it."""
        with gr.Blocks(
            title="lorasynth", analytics_enabled=False, delete_cache=(60, _KEPT)
        ) as page:
            knows = " or ".join(dict.fromkeys(model["domain"] for model in self._models))
            gr.Markdown(f"# lorasynth\nOne photo in, a LoRA file out. Made for: **{knows}**.")
            with gr.Tab("Photo to LoRA"), gr.Row():
                self._making()
            with gr.Tab("LoRA format doctor"):
                self._doctor()
            page.unload(self.leave)
        page.queue(max_size=self._limits.queue, default_concurrency_limit=16)
        return page

    def _making(self) -> None:
        trigger, draws = self._models[0]["trigger_phrase"], self._engine.makes_images
        prompts = [f"a portrait of {trigger}{more}" for more in ("", ", smiling", ", red hoodie")]
        with gr.Column(scale=2, min_width=300):
            gr.Markdown("## 1. Add a photo")
            photos = _photos("Photos of one person or subject")
            with gr.Accordion("Or take one with the camera", open=False):
                snap = gr.Image(sources=["webcam"], type="filepath", label="Camera", buttons=[])
            _html(_CONSENT)
            text = gr.Textbox(
                "\n".join(prompts), label="Images to make: a prompt a line", lines=3, visible=draws
            )
            make = gr.Button("Make the LoRA", variant="primary", size="lg")
            options, sources = self._options()
        with gr.Column(scale=3, min_width=300):
            gr.Markdown("## 2. Look, and download")
            said = _html('<p class="empty">Add a photo and press “Make the LoRA”.</p>')
            shown = _html()
            download = gr.DownloadButton("Download the LoRA file", interactive=False)
            begin = self._refining() if draws else gr.Button(visible=False)
        for one in (photos, sources):
            one.upload(self.remember, [photos, sources], api_visibility="private")
        given, shows = [photos, snap, text, *options], [said, shown, download, begin]
        make.click(self.make, given, shows, show_progress="hidden", api_visibility="private")

    def _options(self) -> tuple[list[Any], gr.Gallery]:
        """What need not be chosen, in the order of `_fields`; and the second person's photos."""
        names, several = [model["name"] for model in self._models], len(self._models) > 1
        with gr.Accordion("Change attributes", open=False, visible=bool(self._scales)):
            steps = [gr.Slider(-2, 2, 0, step=0.25, label=_words(name)) for name in self._scales]
            choices = [(_words(name), name) for name in self._kinds]
            kinds = gr.Dropdown(choices, multiselect=True, label="give it")
        with gr.Accordion("Go towards a second person", open=False, visible=bool(self._scales)):
            other = _photos("Photos of the second person")
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the second person")
        with gr.Accordion("Strength, seed, file format", open=False):
            model = gr.Dropdown(names, value=names[0], label="Model", visible=several)
            strength = gr.Slider(0.1, 2, 1, step=0.05, label="Strength")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
            forms = ["auto", "kohya", "diffusers", "comfyui"]
            form = gr.Dropdown(forms, value=forms[0], label="File format")
        return [model, strength, seed, form, other, share, kinds, *steps], other

    def _refining(self) -> gr.Button:
        gr.Markdown("## 3. Refine it, if you like\nTrain it on with the photos; never worse.")
        steps = gr.Slider(10, 300, 50, step=10, label="Steps of training")
        with gr.Row():
            begin = gr.Button("Refine on the photos", interactive=False)
            stop = gr.Button("Stop")
        said, shown = _html(), _html()
        download = gr.DownloadButton("Download the refined LoRA file", interactive=False)
        shows = [said, shown, download]
        running = begin.click(
            self.refine, steps, shows, show_progress="hidden", api_visibility="private"
        )
        stopped = _said("Stopped.")
        stop.click(lambda: stopped, None, said, cancels=running, api_visibility="private")
        return begin

    def _doctor(self) -> None:
        gr.Markdown("Drop any LoRA file: what it is, who reads it, and a copy for another program.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                file = gr.File(label="LoRA file")
                program = gr.Dropdown(list(PROGRAMS), value=PROGRAMS[0], label="Write it for")
                convert = gr.Button("Convert", variant="primary")
                said = _html()
                download = gr.DownloadButton("Download the converted file", interactive=False)
            with gr.Column(scale=3, min_width=300):
                found = _html('<p class="empty">What the file is will stand here.</p>')
        file.change(self.inspect, file, [found, said, download], api_visibility="private")
        convert.click(self.convert, [file, program], [said, download], api_visibility="private")


def _html(text: str = "") -> gr.Markdown:
    """HTML of our own; Gradio's own component for it evaluates text as a program."""
    return gr.Markdown(text, sanitize_html=False, latex_delimiters=[])


def _photos(label: str) -> gr.Gallery:
    more: dict[str, Any] = {"file_types": ["image"], "buttons": [], "interactive": True}
    return gr.Gallery(label=label, columns=3, height=220, fit_columns=False, **more)


def _offered(path: Path) -> gr.DownloadButton:
    return gr.DownloadButton(value=str(path), interactive=True)


def _paths(gallery: Sequence[tuple[str, Any]] | None) -> list[Path]:
    return [Path(path) for path, _ in gallery or ()]


def _is_kind(name: str) -> bool:
    """Whether an attribute is one of several, such as top:bob, and no number or colour."""
    return ":" in name and name.rpartition(":")[2] not in ("red", "green", "blue")


def _words(name: str) -> str:
    """An attribute's name in words: top:longButNot is top: long but not."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in name.replace("_", " "))
    return spaced.replace(":", ": ").replace("  ", " ")


def _said(line: str) -> str:
    return f'<p class="said" role="status">{escape(line)}</p>'


def _progress(step: int, steps: int) -> str:
    line = f"Step {step} of {steps}" if step else "Looking at the photos …"
    bar = f'<progress value="{step}" max="{steps}" aria-label="Steps of training"></progress>'
    return f'<div class="said" role="status">{line}{bar}</div>'


def _refused(error: Exception, path: str = "") -> str:
    """Why something cannot be done, in one line; of a defect of ours nothing but that."""
    line = "the service failed at this"
    if isinstance(error, RefusedError):
        line = error.detail
    elif isinstance(error, LorasynthError):
        line = str(error).replace("--", "").replace(path or "\0", "the LoRA file")
    else:
        note(error)
    return f'<p class="refused" role="alert">{escape(escaped(line)[:2000])}</p>'


def _figures(prompts: Sequence[str], made: Mapping[str, MadeImages]) -> str:
    """Images with their prompts and similarities; those of one prompt beside each other."""
    rows = []
    for number, prompt in enumerate(map(escape, prompts)):
        row = ""
        for title, images in made.items():
            data = base64.b64encode(images.files[number]).decode()
            like = _like(images.similarity[number]) if images.similarity else ""
            row += (
                f'<figure><img src="data:image/png;base64,{data}" alt="{title} {prompt}">'
                f"<figcaption><b>{title}</b>{prompt}<br>{like}</figcaption></figure>"
            )
        rows.append(f"<div>{row}</div>")
    return f'<div class="shown{" pairs" * (len(made) > 1)}">{"".join(rows)}</div>'


def _like(cosine: float) -> str:
    return "shows nobody" if isnan(cosine) else f"similarity {cosine:.2f}"


def _mean(images: MadeImages) -> str:
    known = [one for one in images.similarity if not isnan(one)]
    return f" Similarity to the photos {sum(known) / len(known):.2f} of 1." if known else ""


def _became(facts: Mapping[str, str]) -> str:
    if "similarity-before" not in facts:
        return ""
    before, after = (f"{float(facts[f'similarity-{when}']):.2f}" for when in ("before", "after"))
    if "optimised" not in facts:
        return f"No better in other scenes ({before}): the file is the first LoRA, unchanged."
    return f"Similarity to the photos, in other scenes: {before} before, {after} after."

"""`esdllm serve`."""

from __future__ import annotations

import ipaddress
import re
import sys
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from esdllm.cli.choice import Choice
from esdllm.cli.options import (
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)
from esdllm.cli.shared import counted, load_asked, stderr
from esdllm.config.project import KEY_VARIABLE
from esdllm.errors import ConfigError, InputError, known
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.serving.coupling import coupled
from esdllm.serving.session import Session
from esdllm.serving.sizing import choose_slots

if TYPE_CHECKING:
    from esdllm.serving.api import Service


@attrs.frozen(kw_only=True)
class Serve:
    """Serve a model to many at once, by OpenAI's API.

    Requests are decoded side by side, each token for token as it would be alone. Only this machine is served unless --host
    says more. One line of JSON a request goes to standard output, all else to standard error. At Ctrl-C or SIGTERM what was
    asked is still answered, and nothing new is taken; at the second it stops.

    \b
    esdllm serve
    esdllm serve --model GSAI-ML/LLaDA-8B-Instruct --preset es-dllm-parallel --slots 16 --length 2048
    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"model": "tiny-llada", "messages": [{"role": "user", "content": "What is 12 + 7?"}]}'
    """

    model: ModelName = None
    family: FamilyName = None
    served_name: Annotated[
        str | None,
        typer.Option("--served-model-name", metavar="NAME", help="What requests call the model [as --model does]."),
    ] = None
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every address of this machine.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen at; 0 is any free one.")] = (
        8000
    )
    slots: Annotated[
        str, typer.Option(metavar="N", help="Requests that are decoded side by side; auto is what memory has room for.")
    ] = "auto"
    length: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of a slot: a prompt and its answer [the model's context]."),
    ] = None
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that may wait for a slot; others are told to come again.")
    ] = 64
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time from a request to its answer; then it ends with what is there."),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"Keys, one a line, of which a request must bring one; {KEY_VARIABLE} is one more.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer to this name, as behind a proxy, without a key; repeatable."),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A web page's origin that may ask, such as https://example.org; repeatable."),
    ] = None
    allow_coupled: Annotated[
        bool,
        typer.Option(
            "--allow-coupled", help="Serve with components that let an answer depend on the requests beside it."
        ),
    ] = False
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD", help="Leave a field of requests aside that would be refused, such as tools; repeatable."
        ),
    ] = None
    log_text: Annotated[bool, typer.Option("--log-text", help="Log prompts and answers too.")] = False
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    debug: Debug = False

    def run(self) -> None:
        """Serve, until a signal says that it is enough."""
        from esdllm.serving.api.keys import read_keys
        from esdllm.serving.api.server import bound

        wanted = self._wanted()
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"--timeout {self.timeout:g}; give seconds, above 0")
        self._check_ignored()
        keys = read_keys(self.key_file)
        choice, catalogue = Choice.of(self), Catalogue.load()
        decode = choice.config(catalogue)
        self._check_coupling(Components.resolve(decode, catalogue), catalogue)
        with bound(self.host, self.port) as at:  # a port that is taken is found before weights are read
            name, model = load_asked(self, catalogue)
            engine = Engine.build(model, decode, catalogue)
            length = self.length or model.spec.context
            session = Session.open(
                engine, slots=choose_slots(engine, length, wanted), length=length, max_queue=self.max_queue
            )
            try:
                self._serve(session, self.served_name or name, keys, at)
            finally:
                session.close()

    def _wanted(self) -> int | None:
        """Return how many slots are asked for; None for as many as fit."""
        if self.slots == "auto":
            return None
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", self.slots):
            raise InputError(f"--slots {self.slots}; give a number from 1, or auto")
        return int(self.slots)

    def _check_ignored(self) -> None:
        from esdllm.serving.api.asked import REFUSED

        for name in self.ignore or ():
            if name not in REFUSED:
                raise InputError(f"--ignore {name}: no field of that name is refused; {known(name, REFUSED)}")

    def _check_coupling(self, components: Components, catalogue: Catalogue) -> None:
        reasons = coupled(components, catalogue)
        if reasons and not self.allow_coupled:
            raise ConfigError(f"{'; '.join(reasons)}; --allow-coupled serves all the same")
        for reason in reasons:
            stderr().print(f"hint: {reason}", style="yellow", soft_wrap=True, markup=False)

    def _serve(self, session: Session, name: str, keys: tuple[str, ...], at: socket) -> None:
        from esdllm.serving.api import RequestLimits, Service
        from esdllm.serving.api.logs import LineLog
        from esdllm.serving.api.server import Server

        log = LineLog(sys.stdout.fileno())
        try:
            service = Service(
                session=session,
                model=name,
                keys=keys,
                hosts=self._hosts(keys),
                origins=tuple(self.allow_origin or ()),
                ignored=tuple(self.ignore or ()),
                limits=RequestLimits(request_seconds=self.timeout),
                log=log,
                log_text=self.log_text,
            )
            server = Server(service, at, lambda: self._tell(service, at))
            server.serve_here()
        finally:
            log.close()
        if server.failed:
            raise RuntimeError("the session ended by a fault of its own, which is logged above")
        if server.stopped_by is not None:
            raise typer.Exit(128 + server.stopped_by)

    def _hosts(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names that requests may ask by: this machine's, where no key is asked for and nobody else is served."""
        if keys or not _is_loopback(self.host):
            return ()
        return ("127.0.0.1", "localhost", "[::1]", self.host, *(self.allow_host or ()))

    def _tell(self, service: Service, at: socket) -> None:
        """Say that requests are taken, and what may surprise."""
        host, port = at.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        told = f"{counted(service.session.state().slots, 'slot')} of {counted(service.session.length, 'token')}"
        stderr().print(f"serving {service.model} at {where}, {told}; Ctrl-C ends it", soft_wrap=True, markup=False)
        if not service.keys and not _is_loopback(self.host):
            stderr().print(
                "hint: whoever reaches this machine may ask; --api-key-file FILE asks for a key",
                style="yellow",
                soft_wrap=True,
            )


def _is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

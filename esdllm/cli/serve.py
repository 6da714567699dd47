"""`esdllm serve`."""

from __future__ import annotations

import ipaddress
import re
import sys
from socket import socket
from typing import TYPE_CHECKING

import attrs
import typer

from esdllm.cli.choice import Choice
from esdllm.cli.loading import load_asked
from esdllm.cli.options.serve import ServeOptions
from esdllm.cli.scheduling import scheduling_admission, scheduling_policy
from esdllm.cli.shared import counted, stderr
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
class Serve(ServeOptions):
    """Serves until a signal says that it is enough."""

    def run(self) -> None:
        """Serve, until a signal says that it is enough."""
        from esdllm.serving.api.keys import read_keys
        from esdllm.serving.api.server import bound

        wanted = self._wanted()
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"--timeout {self.timeout:g}; give seconds, above 0")
        self._check_ignored()
        policy, admission = scheduling_policy(self.policy, self.patience), scheduling_admission(self.admission)
        keys = read_keys(self.key_file)
        choice, catalogue = Choice.of(self), Catalogue.load()
        decode = choice.config(catalogue)
        self._check_coupling(Components.resolve(decode, catalogue), catalogue)
        with bound(self.host, self.port) as at:  # a port that is taken is found before weights are read
            name, model = load_asked(self, catalogue)
            engine = Engine.build(model, decode, catalogue)
            length = self.length or model.spec.context
            session = Session.open(
                engine,
                slots=choose_slots(engine, length, wanted),
                length=length,
                max_queue=self.max_queue,
                policy=policy,
                admission=admission,
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

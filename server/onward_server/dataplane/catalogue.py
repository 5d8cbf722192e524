"""The versions of models that are served: how they come, change and go, and which one a request means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

from onward.errors import ConfigError, OnwardError
from onward_server.dataplane.opening import Opener, effective
from onward_server.dataplane.overrides import Override, Overrides
from onward_server.dataplane.repository import MODEL_FILE, Entry, is_name, names, scan_model
from onward_server.dataplane.served import ServedModel
from onward_server.errors import ControlError, ModelNotFoundError, ModelUnavailableError, RequestError
from onward_server.model_settings import ModelSettings
from onward_server.settings import ServerSettings

__all__ = ["Catalogue", "ModelState"]

_LOG = logging.getLogger(__name__)

_UNLOADED = "unloaded"
"""The reason of a version that a client has unloaded, as Triton words it in an index."""

ModelState = tuple[str, int, str, str]
"""Name, version (0: the model as a whole), `READY`, `LOADING` or `UNAVAILABLE`, and the reason."""


@final
class Catalogue:
    """The models of a repository, on one event loop.

    Args:
        settings: gives the server's settings in force.
        opener: opens versions.
    """

    def __init__(self, settings: Callable[[], ServerSettings], opener: Opener) -> None:
        self._settings = settings
        self._opener = opener
        self._overrides = Overrides()
        self._closed = False
        self._unread = ""
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._entries: dict[tuple[str, int], tuple[Entry, ModelSettings, object]] = {}
        self._problems: dict[tuple[str, int], str] = {}
        self._loading: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> list[str]:
        """Names of the models that are served."""
        return sorted(self._models)

    @property
    def problems(self) -> Mapping[tuple[str, int], str]:
        """Why a model's version is not served; version 0 stands for the model as a whole."""
        return dict(self._problems)

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are served, oldest first."""
        return sorted(self._models.get(name, {}))

    def states(self, *, ready_only: bool = False) -> list[ModelState]:
        """Every model that the repository holds, as far as it was looked at."""
        found = {(m.name, m.version): ("READY", self._behind(m)) for m in self.select()}
        if not ready_only:
            for key, problem in self._problems.items():
                found.setdefault(key, ("UNAVAILABLE", problem))
            for name in self._loading:
                if name not in self._models:
                    found[name, 0] = ("LOADING", "")
        return [(name, version, *state) for (name, version), state in sorted(found.items())]

    def _behind(self, model: ServedModel) -> str:
        """Why what is served of a version is not what the repository has; empty: it is."""
        problem = self._problems.get((model.name, model.version))
        return "" if problem is None else f"what was there before is served: {problem}"

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model to use for a name and a version as a request gives them; "" is the latest version.

        Raises:
            ModelNotFoundError: the repository has no such model or version.
            ModelUnavailableError: it has, but it could not be loaded.
        """
        versions = self._models.get(name)
        if versions is None and name in self._settings().aliases:
            name, _, fixed = self._settings().aliases[name].partition("/")
            version = version or fixed
            versions = self._models.get(name)
        versions = versions or {}
        if not version and versions:
            return versions[max(versions)]
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else None
        if number is not None and number in versions and str(number) == version:
            return versions[number]
        known = {v: problem for (n, v), problem in self._problems.items() if n == name}
        relevant = [problem for v, problem in known.items() if not version or v in (0, number)]
        if relevant:
            why = "was unloaded" if relevant[0] == _UNLOADED else f"could not be loaded: {relevant[0]}"
            raise ModelUnavailableError(f"model {name!r} {why}")
        if versions or known:
            served = ", ".join(map(str, sorted(versions))) or "none"
            raise ModelNotFoundError(f"model {name!r} has no version {version!r}; versions served: {served}")
        raise ModelNotFoundError(f"no model {name!r}; models served: {', '.join(self.names) or 'none'}")

    def select(self, name: str = "", version: str = "") -> list[ServedModel]:
        """Every served version that fits; an empty name or version stands for all.

        Raises:
            ModelNotFoundError: a name or version is given and there is no such model.
        """
        if not name:
            return [self._models[n][v] for n in self.names for v in self.versions(n)]
        if version:
            return [self.model(name, version)]
        self.model(name)
        return [self._models[name][v] for v in self.versions(name)]

    def file(self, name: str, version: int) -> Path:
        """The model file of a version, in the repository or among those that a client sent.

        Raises:
            ModelUnavailableError: it is not there any more.
        """
        known = self._entries.get((name, version))
        path = known[0].path if known else self._settings().repository / name / str(version) / MODEL_FILE
        if not path.is_file():
            raise ModelUnavailableError(f"model {name!r} version {version} is no longer in the repository")
        return path.absolute()

    def check_repository(self, name: str) -> None:
        """Refuse to change a model's folder where that is not what is served.

        Raises:
            ControlError: the model is served from files that a client sent.
        """
        override = self._overrides.of(name)
        if override is not None and override.repository is not None:
            raise ControlError(f"model {name!r} is served from files that a client sent; unload it first")

    async def load(self, name: str, override: Override | None = None) -> None:
        """Load a model, or load it again, all of the versions that its policy chooses; then swap.

        Args:
            name: the model.
            override: settings and files in the place of the repository's; None: the repository's.

        Raises:
            ControlError: `model_control` is not `explicit`.
            ModelNotFoundError: the repository has no such model.
            ModelUnavailableError: a version cannot be served; what was served before still is.
        """
        self._check_control(name)
        if name not in await asyncio.to_thread(names, self._settings().repository) and (
            override is None or not override.files
        ):
            raise ModelNotFoundError(f"the repository has no model {name!r}")
        await self._refresh_model(name, override=override, strict=True)

    async def publish(self, name: str, version: int) -> None:
        """Look at one model of the repository again; `version` has to be served then. See `refresh`.

        Raises:
            ControlError: the model is served from files that a client sent.
            ModelUnavailableError: the version cannot be served; what was served before still is.
        """
        self.check_repository(name)
        await self._refresh_model(name, needed=version)

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests that it has are answered.

        Raises:
            ControlError: `model_control` is not `explicit`.
            ModelNotFoundError: it is not loaded.
        """
        self._check_control(name)
        async with self._lock(name):
            versions = self._models.pop(name, {})
            known = [key for key in self._problems if key[0] == name]
            if not versions and not known:
                raise ModelNotFoundError(f"no model {name!r} is loaded")
            for version in versions:
                self._problems[name, version] = _UNLOADED
                self._entries.pop((name, version), None)
            self._overrides.drop(name)
            for model in versions.values():
                self._retire(model)
        _LOG.info("model %s was unloaded", name)

    async def start(self) -> None:
        """Load what the settings choose.

        Raises:
            ConfigError: the repository cannot be read, or has no model that `startup_models` names.
        """
        settings = self._settings()
        found = await asyncio.to_thread(names, settings.repository)
        chosen = found
        if settings.model_control == "explicit" and "*" not in settings.startup_models:
            chosen = list(settings.startup_models)
            missing = [name for name in chosen if name not in found]
            if missing:
                raise ConfigError(f"startup_models: the repository has no model {missing[0]!r}")
        await asyncio.gather(*(self._refresh_model(name) for name in chosen))
        if not self._models:
            _LOG.warning("repository %s holds no model that can be served", settings.repository)

    async def refresh(self) -> None:
        """Look at the repository again: load what is new or has changed, unload what is gone."""
        try:
            found = set(await asyncio.to_thread(names, self._settings().repository))
        except ConfigError as error:
            if str(error) != self._unread:
                _LOG.error("the repository stays as it is: %s", error)
            self._unread = str(error)
            return
        self._unread = ""
        known = set(self._models) | {name for name, _ in self._problems}
        chosen = known if self._settings().model_control == "explicit" else known | found
        unloaded = {name for (name, _), problem in self._problems.items() if problem == _UNLOADED}
        await asyncio.gather(
            *(self._refresh_model(name) for name in sorted(chosen - (unloaded - set(self._models))))
        )

    def close(self) -> None:
        """Give up what runs."""
        self._closed = True
        for task in self._retiring:
            task.cancel()
        for model in self.select():
            model.close()
        self._overrides.close()

    def _check_control(self, name: str) -> None:
        if self._settings().model_control != "explicit":
            raise ControlError(
                f"models are not loaded by clients: model_control is {self._settings().model_control!r}, "
                "not 'explicit'"
            )
        if not is_name(name):
            raise RequestError(
                f"{name[:128]!r} cannot be a model's name: letters, digits, '.', '_' and '-', at most 128"
            )

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _refresh_model(
        self, name: str, *, override: Override | None = None, strict: bool = False, needed: int | None = None
    ) -> None:
        """Open what has changed, then swap; with `strict`, everything has to open, else what is `needed`."""
        async with self._lock(name):
            self._loading.add(name)
            try:
                await self._swap(name, override, strict, needed)
            finally:
                self._loading.discard(name)

    async def _swap(self, name: str, override: Override | None, strict: bool, needed: int | None) -> None:
        if override is None and not strict:
            override = self._overrides.of(name)
        if override is not None and override.files:
            override = await asyncio.to_thread(self._overrides.write, name, override)
        root = self._settings().repository
        if override is not None and override.repository is not None:
            root = override.repository
        entries = await asyncio.to_thread(scan_model, root, name)
        if override is not None and override.settings is not None:
            entries = _overridden(entries, override.settings)
        old = self._models.get(name, {})
        new: dict[int, ServedModel] = {}
        opened: list[ServedModel] = []
        problems: dict[tuple[str, int], str] = {}
        records: dict[tuple[str, int], tuple[Entry, ModelSettings, object]] = {}
        try:
            for entry in entries:
                key = (name, entry.version)
                chosen = effective(entry.settings, self._settings())
                record = (entry, chosen, await asyncio.to_thread(_fingerprint, entry))
                if self._entries.get(key) == record:
                    # nothing has changed, not even that it could not be opened
                    if entry.version in old:
                        new[entry.version] = old[entry.version]
                        records[key] = record
                        continue
                    if not strict and key in self._problems:
                        problems[key] = self._problems[key]
                        records[key] = record
                        continue
                problem = entry.problem
                if not problem:
                    try:
                        model = await self._opener.open(entry, chosen)
                        opened.append(model)
                        new[entry.version] = model
                    except OnwardError as error:
                        problem = str(error)
                    except Exception as error:  # noqa: BLE001 - one model must not keep the others from being served
                        _LOG.exception("model %s version %d", name, entry.version)
                        problem = f"{type(error).__name__}: {error}"
                records[key] = record
                if problem:
                    problems[key] = problem
                    _LOG.error("model %s version %s is not served: %s", name, entry.version or "-", problem)
            if strict and (problems or not new):
                reason = next(iter(problems.values()), "it has no version")
                raise ModelUnavailableError(f"model {name!r} could not be loaded: {reason}")
            if needed is not None and needed not in new:
                reason = problems.get((name, needed), f"its version policy does not choose {needed}")
                raise ModelUnavailableError(f"model {name!r} could not be loaded: {reason}")
        except BaseException:
            for model in opened:
                model.close()
            if strict and not old:
                self._problems.update(problems)
            raise
        if self._closed:
            for model in opened:
                model.close()
            return
        # an old version goes on where the new file of the same number cannot be opened, or nobody knows of it
        unread = any(entry.unread for entry in entries)
        kept = {v: m for v, m in old.items() if v not in new and (unread or (name, v) in problems)}
        merged = {**kept, **new}
        if override is not None:
            self._overrides.keep(name, override)
        elif strict:
            self._overrides.drop(name)
        if merged:
            self._models[name] = merged
        else:
            self._models.pop(name, None)
        for key in [key for key in (*self._problems, *self._entries) if key[0] == name]:
            self._problems.pop(key, None)
            self._entries.pop(key, None)
        self._entries.update(records)
        self._problems.update(problems)
        for version, model in old.items():
            if merged.get(version) is not model:
                self._retire(model)
        for model in opened:
            _LOG.info("%s is ready (%s)", model.title, model.engine)

    def _retire(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(model.retire(self._settings().drain_timeout))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _overridden(entries: list[Entry], settings: ModelSettings) -> list[Entry]:
    versions = settings.versions.chosen([entry.version for entry in entries])
    return [replace(entry, settings=settings) for entry in entries if entry.version in versions]


def _fingerprint(entry: Entry) -> object:
    """What changes when any file of a version does."""
    try:
        files = [*entry.path.parent.iterdir()] if entry.version else []
        if entry.settings.labels is not None:
            files.append(entry.folder / entry.settings.labels)
        found = [(file.name, file.stat()) for file in sorted(files)]
    except OSError:
        return None
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]

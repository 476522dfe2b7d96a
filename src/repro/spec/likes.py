"""`like: cpu`: a profile is another one plus what differs, merged per experiment, setting and factor."""

from typing import Any

from repro.errors import did_you_mean
from repro.files.strict import told
from repro.spec.yaml import Where, YamlFile


def resolve_likes(file: YamlFile) -> None:
    """Write every profile of a `paper.yaml` out in full; what is inherited keeps the line where it stands.

    An experiment of the other profile that is null here does not run here.
    """
    profiles = file.data.get("profiles") if isinstance(file.data, dict) else None
    if not isinstance(profiles, dict) or not any(isinstance(one, dict) and "like" in one for one in profiles.values()):
        return
    done: dict[str, Any] = {}
    for name in profiles:
        _resolved(file, profiles, name, done, [])
    file.data["profiles"] = {name: done[name] for name in profiles}


def _resolved(file: YamlFile, profiles: dict[str, Any], name: str, done: dict[str, Any], way: list[str]) -> Any:
    if name in done:
        return done[name]
    here = profiles[name]
    if not isinstance(here, dict) or "like" not in here:
        done[name] = here
        return here
    where: Where = ("profiles", name, "like")
    other, way = here["like"], [*way, name]
    if not isinstance(other, str):
        file.fail(where, f"{told(other, yaml=True)}; write the name of another profile")
    if other not in profiles:
        file.fail(where, f"no profile '{other}'{did_you_mean(other, profiles)}")
    if other in way:
        circle = " is like ".join([*way[way.index(other) :], other])
        file.fail(where, f"goes in a circle: {circle}; write one of them out")
    base = _resolved(file, profiles, other, done, way)
    own = {key: value for key, value in here.items() if key != "like"}
    if not isinstance(base, dict):
        done[name] = own
        return own
    made = _merged(file, base, own, ("profiles", other), ("profiles", name))
    for key in [key for key, value in own.items() if value is None and isinstance(base.get(key), dict)]:
        del made[key]
    done[name] = made
    return made


def _merged(file: YamlFile, base: dict[str, Any], own: dict[str, Any], origin: Where, where: Where) -> dict[str, Any]:
    """`base` with what `own` says in place of it: experiments, their settings and their factors one by one."""
    made = {}
    for key in [*base, *(key for key in own if key not in base)]:
        if key not in own:
            file.origins[(*where, key)] = (*origin, key)
            made[key] = base[key]
        elif isinstance(base.get(key), dict) and isinstance(own[key], dict) and _merges(where, key):
            made[key] = _merged(file, base[key], own[key], (*origin, key), (*where, key))
        else:
            made[key] = own[key]
    return made


def _merges(where: Where, key: str) -> bool:
    """An experiment of a profile, or the factors of one; a setting that is a mapping is replaced as a whole."""
    return len(where) == 2 or len(where) == 3 and key == "factors"

"""docker-compose.yml, the Dockerfile and .env.example: valid, complete, and in agreement with the settings."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from storage.settings import PREFIX, DatabaseSettings, StorageSettings
from tests.compose import stack
from worker.settings import GenerateSettings, WorkerSettings

REQUIRED = {
    "POSTGRES_PASSWORD": "p4ssw0rd",
    "QWENQ_SECRET_KEY": "a secret key",
    "QWENQ_WEBHOOK_SECRET": "whsec_secret",
}
# What each of our services reads at its start.
SETTINGS: dict[str, type[BaseSettings]] = {
    "migrate": DatabaseSettings,
    "api": ApiSettings,
    "worker": GenerateSettings,
    "worker-cpu": GenerateSettings,
    "webhook-worker": WorkerSettings,
    "beat": StorageSettings,
}
SERVICES = stack.load(REQUIRED)["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def settings_of(cls: type[BaseSettings]) -> set[str]:
    return {f"{PREFIX}{name.upper()}" for name in cls.model_fields}


def test_the_file_follows_the_compose_specification() -> None:
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(stack.FILE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_ours_are_the_services_with_settings_and_the_model_tool() -> None:
    assert set(OURS) == {*SETTINGS, "model"}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_secret_that_is_missing_stops_compose(name: str) -> None:
    with pytest.raises(stack.Unset, match=f"{name}: see .env.example"):
        stack.load({**REQUIRED, name: ""})


@pytest.mark.parametrize("name", OURS)
def test_each_image_has_its_stage_and_runs_as_another_user_than_root(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (stack.ROOT / build["dockerfile"]).samefile(stack.DOCKERFILE)
    lines = stack.stages()[build["target"]].splitlines()
    assert "USER qwenq" in lines
    assert 'ENTRYPOINT ["qwenq"]' in lines


def test_the_images_without_a_worker_hold_no_torch() -> None:
    installed = {
        stage: " ".join(re.findall(r"pip install .*", lines)) for stage, lines in stack.stages().items()
    }
    assert "[api]" in installed["service"]
    assert "torch" not in installed["service"]
    assert "[worker]" not in installed["service"]
    for stage in ("worker-gpu", "worker-cpu"):
        assert "[worker]" in installed[stage]


def test_the_model_tool_has_the_image_of_the_chosen_worker() -> None:
    for profile, worker in {"gpu": "worker", "cpu": "worker-cpu"}.items():
        services = stack.load({**REQUIRED, "COMPOSE_PROFILES": profile})["services"]
        assert services["model"]["image"] == services[worker]["image"]
        assert services["model"]["build"]["target"] == services[worker]["build"]["target"]
        assert services[worker]["profiles"] == [profile]


def test_what_the_images_copy_passes_the_ignore_file() -> None:
    ignored = (stack.ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    lines = re.findall(r"^COPY (.+)$", stack.DOCKERFILE.read_text(), flags=re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert "*" in ignored
    assert copied == allowed
    assert all((stack.ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_set_and_every_variable_is_a_setting(name: str) -> None:
    """A typing error in a name would be ignored by the program in silence."""
    assert {key for key in stack.keys(name) if key.startswith(PREFIX)} == settings_of(SETTINGS[name])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_can_happen(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert wait["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
        assert "profiles" not in SERVICES[other]


@pytest.mark.parametrize("name", sorted({*SERVICES} - {"migrate", "model", "beat"}))
def test_services_are_healthy_or_not(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert stack.seconds(check["timeout"]) <= stack.seconds(check["interval"])


def test_stopping_takes_less_time_than_docker_gives() -> None:
    """Else answers are cut off with SIGKILL, which costs each of them an attempt."""
    engine_stop = 10
    for name in ("worker", "worker-cpu"):
        drain = int(SERVICES[name]["environment"]["QWENQ_DRAIN_SECONDS"])
        assert stack.seconds(SERVICES[name]["stop_grace_period"]) > drain + engine_stop
    api = SERVICES["api"]
    assert stack.seconds(api["stop_grace_period"]) > int(api["environment"]["QWENQ_DRAIN_SECONDS"])
    tries = WorkerSettings.model_fields["webhook_timeout"].default
    assert stack.seconds(SERVICES["webhook-worker"]["stop_grace_period"]) > tries


def test_only_the_api_is_reachable_and_only_from_this_host() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert SERVICES["api"]["environment"]["QWENQ_PORT"] == "8000"


def test_the_workers_only_read_checkpoints_and_cannot_leave() -> None:
    assert stack.load(REQUIRED)["networks"]["state"] == {"internal": True}
    for name in ("worker", "worker-cpu"):
        assert SERVICES[name]["volumes"] == ["models:/models:ro"]
        assert SERVICES[name]["networks"] == ["state"]


def test_the_api_alone_has_the_files_and_its_user_may_write_them() -> None:
    mounted = {name for name, service in SERVICES.items() if "files:/files" in service.get("volumes", [])}
    assert mounted == {"api"}
    assert SERVICES["api"]["environment"]["QWENQ_FILES_DIR"] == "/files"
    assert re.search(
        r"install --directory --owner=qwenq .* /files$", stack.DOCKERFILE.read_text(), re.MULTILINE
    )


def test_the_example_holds_what_the_file_asks_for() -> None:
    """Required variables without a value, the optional ones commented out, and nothing that means nothing."""
    text = stack.FILE.read_text()
    asked = stack.variables_in(text)
    passed_on = set(re.findall(rf"^  +({PREFIX}\w+):$", text, flags=re.MULTILINE))
    example = stack.EXAMPLE.read_text()
    set_there = dict(re.findall(r"^(\w+)=(.*)$", example, flags=re.MULTILINE))
    offered = set(re.findall(r"^#(\w+)=", example, flags=re.MULTILINE))
    required = {name for name, insisted in asked.items() if insisted}
    assert set_there == {"COMPOSE_PROFILES": "gpu", **dict.fromkeys(required, "")}
    assert offered == (set(asked) | passed_on) - required - {"COMPOSE_PROFILES"}

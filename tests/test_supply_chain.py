"""What is built, published and run by others' code: workflows, the bot, compose files. The workflows are read here, not run."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import release_notes

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
COMPOSE = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.webui.yml")


class _Loader(yaml.SafeLoader):
    """YAML with compose's tags, each as its value."""


_Loader.add_multi_constructor("!", lambda loader, _, node: None)


def loaded(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), _Loader)  # a SafeLoader's child


def steps(workflow: str, job: str) -> list[dict[str, Any]]:
    return list(loaded(f".github/workflows/{workflow}.yml")["jobs"][job]["steps"])


def scripts(workflow: str, job: str) -> str:
    """All that a job runs."""
    return "\n".join(step["run"] for step in steps(workflow, job) if "run" in step)


def test_what_github_runs_is_what_ci_runs() -> None:
    """One script, with lint, tests, the browser's and the containers', which are not skipped there."""
    assert [step["run"] for step in steps("ci", "check") if "run" in step][-1] == ".ci/run"
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for target in ("make lint", "make test", "make test-browser", "NANOCHAT_CONTAINER_TESTS=required make test-containers"):
        assert re.search(rf"^{target}\b", text, re.M), target
    assert text.index("export NANOCHAT_NULLGPU_TESTS=required\n") < text.index("\nmake test\n")
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=False).returncode == 0


def test_the_image_that_is_published_is_the_one_that_was_tested() -> None:
    """Built once; tested, signed and tagged by its digest; `latest` for a release alone."""
    jobs = loaded(".github/workflows/ci.yml")["jobs"]
    assert jobs["image"]["needs"] == "check" and jobs["test-image"]["needs"] == "image"
    assert set(jobs["publish"]["needs"]) == {"image", "test-image"}
    assert "refs/tags/v" in jobs["image"]["if"]
    built, published = scripts("ci", "image"), scripts("ci", "publish")
    assert "push-by-digest=true" in built and "--tag" not in built and " -t " not in built
    (tested,) = [step["env"] for step in steps("ci", "test-image") if step.get("run") == "make test-containers"]
    assert tested["NANOCHAT_CONTAINER_TESTS"] == "required"
    assert tested["NANOCHAT_TEST_IMAGE"] == "${{ needs.image.outputs.name }}@${{ needs.image.outputs.digest }}"
    assert "NANOCHAT_TEST_IMAGE" in (ROOT / "tests/containers/conftest.py").read_text(encoding="utf-8")
    assert "docker build " not in published and "buildx build" not in published
    assert published.index("cosign sign --yes --recursive") < published.index("imagetools create")  # no name before the signature
    assert all(f"--attest type={kind}" in built for kind in ("provenance", "sbom"))
    assert jobs["publish"]["permissions"]["id-token"] == "write"


@pytest.mark.parametrize(
    ("tag", "tags"),
    [("v1.2.3", ["n:1.2.3", "n:latest"]), ("v1.2.3-rc1", ["n:1.2.3-rc1"]), ("v2", ["n:2"]), ("v1.2.3.dev4", ["n:1.2.3.dev4"])],
)
def test_latest_is_a_release(tag: str, tags: list[str], tmp_path: Path) -> None:
    """The workflow's own script, with a registry of our own that notes what it is told."""
    name = tmp_path / "docker"
    name.write_text('#!/bin/sh\ncase "$*" in *create*) echo "$*" >>told ;; *inspect*) echo sha256:d ;; esac\n')
    name.chmod(0o755)
    (tmp_path / "cosign").symlink_to("/bin/true")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "NAME": "n",
        "DIGEST": "sha256:d",
        "GITHUB_REF_NAME": tag,
        "TOKEN": "t",
        "GITHUB_ACTOR": "a",
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts("ci", "publish")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    (told,) = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert re.findall(r"--tag (\S+)", told) == tags and told.endswith(" n@sha256:d")


@pytest.mark.parametrize(("tag", "kind"), [("v1.2.3", "--latest"), ("v1.2.3-rc1", "--prerelease")])
def test_a_release_has_wheels_sums_and_notes(tag: str, kind: str, tmp_path: Path) -> None:
    """The workflow's own script, with a `gh` of our own that notes what it is told; only after the image has its name."""
    assert set(loaded(".github/workflows/ci.yml")["jobs"]["release"]["needs"]) == {"wheels", "publish"}
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("- New.\n")
    subprocess.run("sha256sum -- *.whl >SHA256SUMS", shell=True, cwd=tmp_path / "dist", check=True)
    (tmp_path / "gh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >told\n')
    (tmp_path / "gh").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REF_NAME": tag, "GITHUB_REPOSITORY": "Me/Nano", "GH_TOKEN": "t"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts("ci", "release")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert told[:3] == ["release", "create", tag] and kind in told and told[-2:] == ["dist/a.whl", "dist/SHA256SUMS"]
    assert f"docker pull ghcr.io/me/nano:{tag[1:]}`" in (tmp_path / "notes.md").read_text(encoding="utf-8")
    (tmp_path / "dist" / "a.whl").write_bytes(b"y")  # a wheel that is not the one that was built
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True).returncode != 0


def test_notes_are_those_of_the_version() -> None:
    text = "# Changes\n\n## Unreleased\n\n- Next.\n\n## 1.2.3 (2026-11-30)\n\n- New.\n\n## 1.2.2\n\n- Old.\n"
    assert release_notes.notes("v1.2.3", text, "1.2.3") == "- New.\n"
    assert release_notes.notes("v1.3.0-rc1", text, "1.3.0") == "- Next.\n"
    for tag, version in (("v1.2.3", "1.2.4"), ("v1.3.0", "1.3.0"), ("1.2.3", "1.2.3"), ("v1.2", "1.2.0")):
        with pytest.raises(ValueError, match=r"is not v|no section"):
            release_notes.notes(tag, text, version)


@pytest.mark.parametrize("pinned", [False, True])
def test_the_base_is_named_by_digest(pinned: bool, tmp_path: Path) -> None:
    """With the digest that the bot keeps in the Dockerfile, or the one that the tag has when the image is built."""
    text = (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", text, re.M)
    tag = base.partition("@")[0]
    digest = "sha256:" + ("a" if pinned else "b") * 64
    wanted = f"{tag}@{digest}"
    (tmp_path / "Dockerfile.cuda").write_text(text.replace(f"ARG BASE_IMAGE={base}", f"ARG BASE_IMAGE={wanted if pinned else tag}"))
    tool = tmp_path / "docker"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in\n*inspect*) echo sha256:' + "b" * 64 + ' ;;\n*"buildx build"*) printf "%s\\n" "$@" >told\n'
        'echo \'{"containerimage.digest": "sha256:x"}\' >built.json ;;\nesac\n'
    )
    tool.chmod(0o755)
    (tmp_path / "jq").write_text("#!/bin/sh\necho sha256:x\n")
    (tmp_path / "jq").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REF_NAME": "v1", "GITHUB_REPOSITORY": "Me/Nano", "GITHUB_OUTPUT": "output"}
    environment |= {"TOKEN": "t", "GITHUB_ACTOR": "a", "GITHUB_SHA": "s", "GITHUB_SERVER_URL": "https://example.org"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts("ci", "image").partition("\n")[2]]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert f"BASE_IMAGE={wanted}" in told and f"org.opencontainers.image.base.digest={digest}" in told
    assert (tmp_path / "output").read_text(encoding="utf-8").splitlines() == ["name=ghcr.io/me/nano", "digest=sha256:x"]


def test_the_bot_keeps_what_is_pinned() -> None:
    bot = json.loads((ROOT / ".github/renovate.json").read_text(encoding="utf-8"))
    assert {"dockerfile", "docker-compose", "github-actions", "cargo"} <= set(bot["enabledManagers"])
    assert any(rule.get("pinDigests") and "dockerfile" in rule["matchManagers"] for rule in bot["packageRules"])
    for path in WORKFLOWS:  # a tool's version is found by the comment above it
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"_VERSION: ", text)) == len(re.findall(r"# renovate: datasource=\S+ depName=\S+\n +\w+_VERSION: ", text))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_was_read(path: Path) -> None:
    """Actions by commit, no right that a job does not name, and a time limit for each."""
    workflow = loaded(str(path.relative_to(ROOT)))
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] and "permissions" in job, name
        for step in job["steps"]:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step
            assert "${{" not in step.get("run", ""), step  # values come by the environment: none becomes code


def test_the_schedule_audits_and_runs_the_slow_tests() -> None:
    workflow = loaded(".github/workflows/scheduled.yml")
    assert workflow[True]["schedule"]  # YAML takes `on` for a truth value
    audit = scripts("scheduled", "audit")
    assert "pip-audit" in audit and "--require-hashes" in audit and "requirements.lock" in audit
    assert "cargo audit" in audit and "rustbpe/Cargo.lock" in audit
    assert "make test-slow" in scripts("scheduled", "slow").splitlines()


def test_compose_limits_every_container() -> None:
    """Memory, processes and log of each; images by version; without a GPU none is asked for."""
    for name in (COMPOSE[0], COMPOSE[2]):
        for service, value in loaded(name)["services"].items():
            assert value["mem_limit"] and value["pids_limit"] and "no-new-privileges:true" in value["security_opt"], service
            assert {"max-size", "max-file"} <= set(value["logging"]["options"]), service
    images = [value["image"] for value in loaded(COMPOSE[2])["services"].values()]
    assert all(re.search(r":v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?\}?$", image) for image in images), images
    ours, without = loaded(COMPOSE[0])["services"], loaded(COMPOSE[1])["services"]
    assert set(ours) == set(without)
    assert all(value["environment"] == {"NVIDIA_VISIBLE_DEVICES": "void"} for value in without.values())


def test_who_is_told_about_a_weakness() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in text and re.search(r"^\| version \| supported \|$", text, re.M)
    found_by_github = (ROOT / ".github/SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in found_by_github and "(../docs/security.md)" in found_by_github

"""What people write for a cluster: what is taken, and what is refused."""

from __future__ import annotations

import subprocess

import pytest

from mophpc.errors import LaunchError
from mophpc.submit.settings import Run, name_from
from mophpc.submit.slurm import OWN
from mophpc.submit.words import (
    check_image,
    check_label,
    check_line,
    check_memory,
    check_name,
    check_names,
    parse_option,
    parse_signal,
    seconds_of,
    shell_path,
)

EVIL = ["a\nb", "a\r#SBATCH --uid=0", "a\0b", "a\x1b[2J", "a\u2028b", "", "  "]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("4:30", 4 * 60 + 30),
        ("4:00:00", 4 * 3600),
        ("36:00:00", 36 * 3600),
        ("2-12", 60 * 3600),
        ("1-2:30", 86_400 + 2 * 3600 + 30 * 60),
        ("1-02:30:15", 86_400 + 2 * 3600 + 30 * 60 + 15),
    ],
)
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of("--time", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0:00:00", "-5", "4h", "1-", "1:2:3:4", "1.5", "٤", "4:00:00 ", "9" * 30]
)
def test_other_times_are_refused(text):
    with pytest.raises(LaunchError, match="--time is") as error:
        seconds_of("--time", text)
    assert "allowed: " in str(error.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("USR1@120", ("USR1", 120)), ("sigusr2@60", ("USR2", 60)), ("SIGUSR1@10", ("USR1", 10))],
)
def test_signals(text, found):
    assert parse_signal("--signal", text) == found


@pytest.mark.parametrize(
    "text", ["USR1", "KILL@60", "USR1@", "USR1@5", "USR1@70000", "B:USR1@60", "USR1@60\n", "@60"]
)
def test_other_signals_are_refused(text):
    with pytest.raises(LaunchError, match="--signal"):
        parse_signal("--signal", text)


@pytest.mark.parametrize("text", ["64G", "64g", "512000", "1T"])
def test_memory(text):
    assert check_memory("--mem", text) == text.upper()


@pytest.mark.parametrize("text", ["0", "64GB", "-1", "1.5G", "64 G", "G", "\u0666G"])
def test_other_memory_is_refused(text):
    with pytest.raises(LaunchError, match="--mem is"):
        check_memory("--mem", text)


@pytest.mark.parametrize("text", [*EVIL, "a b", "a;b", "$(id)", "-a", "a'b", "a" * 65])
def test_names_that_are_refused(text):
    with pytest.raises(LaunchError, match="--job-name is"):
        check_name("--job-name", text)


@pytest.mark.parametrize("text", [*EVIL, "a b", "a;b", "$(id)", "--uid=0", "a#b"])
def test_partitions_that_are_refused(text):
    with pytest.raises(LaunchError, match="--partition is"):
        check_names("--partition", text)
    assert check_names("--partition", "gpu,gpu-long") == "gpu,gpu-long"


@pytest.mark.parametrize("text", [*EVIL, "A", "a_b", "-a", "a-", "1a", "a.b", "a" * 51])
def test_labels_that_are_refused(text):
    with pytest.raises(LaunchError, match="--job-name is"):
        check_label("--job-name", text, 50)


@pytest.mark.parametrize("text", [*EVIL, "a b", "-a", "a;b"])
def test_images_that_are_refused(text):
    with pytest.raises(LaunchError, match="--image is"):
        check_image("--image", text)


@pytest.mark.parametrize("text", EVIL)
def test_a_line_stays_on_its_line(text):
    with pytest.raises(LaunchError):
        check_line("--out", text)
    with pytest.raises(LaunchError):
        parse_option("--sbatch-option", f"comment={text}\n", OWN)
    for setting in ("experiment", "out", "stage", "made_by"):
        with pytest.raises(LaunchError):
            Run(**{"experiment": "a.toml", "out": "runs/a", "nodes": 1} | {setting: text})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exclusive", "--exclusive"),
        ("--exclusive", "--exclusive"),
        ("constraint=a100|h100", "--constraint=a100|h100"),
        ("comment=two words", '--comment="two words"'),
        ("comment=#1", '--comment="#1"'),
    ],
)
def test_more_options_of_sbatch(text, line):
    assert parse_option("--sbatch-option", text, OWN) == line


@pytest.mark.parametrize(
    "text", ["-x", "exclusive --uid=0", "comment=a'b", 'comment="a', "a=`id`", "=x", "a b=c"]
)
def test_options_that_cannot_be_put_on_a_line_are_refused(text):
    with pytest.raises(LaunchError, match="--sbatch-option is"):
        parse_option("--sbatch-option", text, OWN)


@pytest.mark.parametrize("name", ["gpus-per-task", "gpu-bind"])
def test_what_hides_gpus_is_refused_with_the_reason(name):
    with pytest.raises(LaunchError, match="hides the other GPUs"):
        parse_option("--sbatch-option", f"--{name}=1", OWN)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/local/a b", "/local/a b"),
        ("$SCRATCH/it's", "/tmp/s c/it's"),
        ("/local/${SCRATCH}x", "/local//tmp/s cx"),
        ("$(id)", "$(id)"),
        ("`id`;$", "`id`;$"),
        ('a\\b"c', 'a\\b"c'),
    ],
)
def test_only_variables_of_a_path_are_looked_up(text, word):
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shell_path('--stage', text)}"],
        env={"SCRATCH": "/tmp/s c"},
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert done.stdout == word


def test_a_variable_that_is_not_set_ends_the_script():
    line = f"echo {shell_path('--stage', '$NO_SUCH_PLACE/x')}; echo on"
    done = subprocess.run(
        ["bash", "-c", line], env={}, capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("stem", "name", "label"),
    [
        ("digits", "digits", "digits"),
        ("my run (2)", "my-run-2", "my-run-2"),
        ("Ünï", "n", "n"),
        ("8x_B", "8x_B", "mophpc-8x-b"),
        ("...", "mophpc", "mophpc"),
        ("a" * 80, "a" * 64, "a" * 50),
    ],
)
def test_a_file_name_makes_a_name(stem, name, label):
    assert check_name("--job-name", name_from(stem)) == name
    assert check_label("--job-name", name_from(stem, is_label=True), 50) == label

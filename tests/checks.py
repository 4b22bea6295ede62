"""What the scripts of this directory and of tools/ share: a check prints one line, which tools/run_suite.py counts.

    PASS name
    FAIL name: why
"""
import subprocess
import sys


class Checks:
    def __init__(self):
        self.failed = 0

    def run(self, name, function, *args):
        """One check: function(*args) returns, or raises."""
        try:
            function(*args)
            print(f"PASS {name}", flush=True)
        except Exception as error:  # whatever it is, the other checks go on
            self.failed += 1
            print(f"FAIL {name}: {error}", flush=True)

    def exit(self):
        sys.exit(1 if self.failed else 0)


def command(*args, status=0, **options):
    """Runs a command and gives its output, stdout and stderr; raises where its exit status is another."""
    args = [str(arg) for arg in args]
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != status:
        raise AssertionError(f"{' '.join(args)}: exit status {done.returncode}, {status} is wanted\n{done.stdout}")
    return done.stdout


def equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, {want!r} is wanted")

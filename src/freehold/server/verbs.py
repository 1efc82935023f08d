# SPDX-License-Identifier: Apache-2.0
"""The update service's commands: arguments and handlers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from freehold.monitor import Monitor
from freehold.report import Report

Handler = Callable[[argparse.Namespace, Monitor], Report]


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    """What, where to, signed by what."""
    parser.add_argument("release", metavar="RELEASE", help="a release in the store (NAME-VERSION), or its directory")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the directory that a web server carries")
    parser.add_argument("--stream", default="stable", help="the stream that points to it (default: stable)")
    parser.add_argument("--key", required=True, metavar="URI", help="the release key: file:, pkcs11: or tpm2:")
    parser.add_argument("--store", type=Path, metavar="DIR", help="the builder's store")


def publish(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Publish a release as static files."""
    from getpass import getpass

    from freehold.build import store as stores
    from freehold.build import tokens, tools
    from freehold.errors import InputError
    from freehold.keys.x509 import load_signer
    from freehold.server import publish as work

    store = stores.Store.open(arguments.store or stores.default_store())
    release = work.load_release(store.release(arguments.release))
    signer = load_signer(arguments.key, lambda prompt: getpass(prompt).encode(), tokens.schemes(monitor))
    if signer.role != "release":
        raise InputError(f"{arguments.key} is a key of role {signer.role}, publishing needs one of role release")
    tree = tools.ensure(stores.cache_directory(), monitor)
    done = work.publish(
        release,
        arguments.to,
        stream=arguments.stream,
        repo=store.repo,
        sign=signer.sign_document,
        runner=tree.run,
        monitor=monitor,
    )
    data: dict[str, object] = {
        "schema": "freehold-publish-1",
        "version": done.version,
        "stream": done.stream,
        "changed": done.changed,
        "directory": str(arguments.to),
    }
    what = "is published" if done.changed else "was published already"
    return Report(data, f"{done.version} {what} in {arguments.to}, stream {done.stream}.\n")


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """What, and at which address."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a directory made by `freehold publish`")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1)")
    parser.add_argument("--port", default=8000, type=int, help="(default: 8000)")


def serve(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Serve a published directory until interrupted."""
    from freehold.server.serve import serve as work

    work(arguments.directory, arguments.bind, arguments.port)
    return Report()


VERBS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None], Handler], ...] = (
    ("publish", "put a release where devices find it", publish_arguments, publish),
    ("serve", "a plain web server for published releases", serve_arguments, serve),
)

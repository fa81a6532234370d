"""The list of commands, and what holds for all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from penname.cli import (
    data,
    demo,
    evaluate,
    importer,
    improve,
    keys,
    pittrain,
    prefer,
    profile,
    selftrain,
    serve,
    setup,
    train,
    trained,
    write,
)
from penname.methods import pit, restpg

app = typer.Typer(
    name="penname",
    help="Make a language model write, for each user, as that user would.",
    epilog="`penname COMMAND --help` tells a command's options.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Rich would double the time that --help takes
    pretty_exceptions_enable=False,  # a pretty traceback prints the variables, and with them users' texts
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="Look after the store's database.", no_args_is_help=True, rich_markup_mode=None)


def _version(asked: bool) -> None:
    if asked:
        from penname import __version__

        typer.echo(f"penname {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show an error's traceback; also after the command, or PENNAME_DEBUG=1."
        ),
    ] = False,
) -> None:
    """Make a language model write, for each user, as that user would."""
    del version, debug  # declared here to be in --help; `_version` and `main` act on them


app.command("demo")(demo.demo)
app.command("import")(importer.import_command)
app.command("users")(data.users)
app.command("show")(data.show)
app.command("profile")(profile.profile)
app.command("prefer")(prefer.prefer)
app.add_typer(train.train_app, name="train")
for _method in restpg.METHODS:
    train.train_app.command(_method)(selftrain.command(_method))
for _stage in pit.METHODS:
    train.train_app.command(_stage)(pittrain.command(_stage))
app.command("adapt")(trained.adapt)
app.command("score")(trained.score)
app.command("merge")(trained.merge)
app.command("write")(write.write)
app.command("improve")(improve.improve)
app.command("tasks")(write.tasks)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(evaluate.report)
app.command("serve")(serve.serve)
app.command("mcp")(serve.mcp)
app.command("export")(data.export)
app.command("erase")(data.erase)
app.add_typer(keys.keys_app, name="keys")
app.command("setup")(setup.setup)
db_app.command("upgrade")(data.upgrade)
app.add_typer(db_app, name="db")

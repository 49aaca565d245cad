"""`kes reseal`: another passphrase, key file, transit key or token for an encrypted folder."""

from pathlib import Path

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.output import JSON
from keswick.cli.terminal import is_terminal, printable, to_json


def reseal(arguments: Arguments) -> None:
    arguments.at_most(0)
    old, new = arguments.value("from"), arguments.value("to")
    if not old:
        arguments.fail("no present seal specified: name its configuration with '--from'")
    if not new:
        arguments.fail("no new seal specified: name its configuration with '--to'")
    from keswick.cli.backup import encrypted_folder
    from keswick.keystore import KeyStoreError, encryptedfs, seals

    old_section, new_section = encrypted_folder(old), encrypted_folder(new)
    folder = new_section.settings["path"]
    if Path(old_section.settings["path"]).resolve() != Path(folder).resolve():
        raise CommandError(
            f"the two configurations name different folders, '{old_section.settings['path']}' and '{folder}': keys go "
            "from one folder to another with 'kes migrate'"
        )
    try:
        before, after = seals.of(old_section.settings), seals.of(new_section.settings)
        encryptedfs.reseal(folder, before, after)
    except KeyStoreError as error:
        raise CommandError(str(error)) from None
    if is_terminal() and not arguments.has("json"):
        print(
            f"'{printable(folder)}' is sealed with {seals.words(after.kind)} now, and no longer opened by the old seal"
        )
    else:
        print(to_json({"folder": folder, "from": before.kind, "to": after.kind}))


COMMAND = Command(
    "",
    "Change the seal of an encrypted folder.",
    reseal,
    (
        Flag("from", "The configuration file with the folder and its present seal.", value="FILE"),
        Flag("to", "The configuration file with the same folder and its new seal.", value="FILE"),
        JSON,
    ),
    details="Only the header is written anew: the keys stay as they are, and a server that runs goes on.\n"
    "Backups that were made before are still opened by the old seal. If others may know it, move the keys into a new\n"
    "folder with 'kes migrate' instead.",
    examples=("kes reseal --from passphrase.yaml --to transit.yaml",),
)

# THE TERMINAL
# One line a job, its `message`; of a dry run a summary; at the end the tables and the page, or the line
# of what failed. Active where Snakemake is quiet about `host`, as by the profiles; `--printshellcmds` shows everything.

import sys
import time

from snakemake.logging import ColorizingTextHandler, logger
from snakemake.settings.enums import Quietness

from onestep.plan import messages
from onestep.plan.story import Story
from onestep.report import command

command.keep(sys.argv, folder=workflow.rundir)
begun = time.time()
story = Story(None)
shown = workflow.output_settings
if (
    Quietness.HOST in (shown.quiet or ())
    and not {Quietness.RULES, Quietness.ALL} & set(shown.quiet or ())
    and not (shown.verbose or shown.printshellcmds)
):
    story.attach(
        [each for each in logger.handlers if isinstance(each, ColorizingTextHandler)],
        dry=shown.dryrun,
    )


onsuccess:
    print(*messages.of_results(plan, since=begun), sep="\n")


onerror:
    print(*story.failure_lines(), sep="\n", file=sys.stderr)

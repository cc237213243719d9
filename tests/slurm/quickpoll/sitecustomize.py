"""Snakemake's executors wait 10 to 40 seconds between two queries of their jobs; tests shorten that."""

import asyncio

_LONGEST = 0.5
_sleep = asyncio.sleep


async def _short_sleep(seconds, result=None):
    return await _sleep(min(seconds, _LONGEST), result)


asyncio.sleep = _short_sleep

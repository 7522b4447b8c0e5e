# An asyncio stream server that serves three clients at once and stops after them.
import asyncio, sys
left = 3
async def serve(reader, writer):
    global left
    lines = 0
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
        lines += 1
    writer.close()
    await writer.wait_closed()
    left -= 1
    if left == 0:
        finished.set()
async def main():
    global finished
    finished = asyncio.Event()
    server = await asyncio.start_unix_server(serve, sys.argv[1], limit=1 << 21)
    print("ready", flush=True)
    async with server:
        await asyncio.wait_for(finished.wait(), 30)
    print("three clients served")
asyncio.run(main())
print("done", flush=True)
sys.stdin.read()

# Three asyncio connections at once, each with requests and a large block.
import asyncio, sys
async def one(name):
    reader, writer = await asyncio.open_unix_connection(sys.argv[1], limit=1 << 21)
    right = 0
    for number in range(100):
        writer.write(f"{name} {number}\n".encode())
        right += await reader.readline() == f"{name} {number}\n".upper().encode()
    block = b"x" * 1000000 + b"\n"
    writer.write(block)
    await writer.drain()
    right += await reader.readline() == block.upper()
    writer.write_eof()
    end = await reader.read()
    writer.close()
    await writer.wait_closed()
    return name, right, end
async def main():
    for result in await asyncio.gather(one("a"), one("b"), one("c")):
        print(result)
asyncio.run(main())
print("done", flush=True)
sys.stdin.read()

/**
 * A disk that keeps a log: a FUSE file system of one file, for a loop device. Arguments: the file to mount on, the log, the
 * size of the disk. The log has a header for each write and each flush, in order, and the bytes of the writes: see
 * replay.ts. A request that was answered is in the log.
 */
import { execFileSync } from 'node:child_process';
import { openSync, readSync, writeSync } from 'node:fs';

const [file = '', logPath = '', sizeText = ''] = process.argv.slice(2);
const size = Number(sizeText);
/** Untouched pages of it take no memory. */
const disk = Buffer.alloc(size);
const log = openSync(logPath, 'a');
const fuse = openSync('/dev/fuse', 'r+');
const options = 'fd=3,rootmode=100000,user_id=0,group_id=0';
execFileSync('mount', ['-i', '-t', 'fuse', '-o', options, 'block-log', file], {
  stdio: ['ignore', 'inherit', 'inherit', fuse],
});

const op = { forget: 2, getattr: 3, open: 14, read: 15, write: 16, release: 18, fsync: 20, flush: 25, init: 26 };
const [interrupt, batchForget] = [36, 42];
const ENOSYS = 38;
const ENODEV = 'ENODEV';
const IN_HEADER = 40;
const most = 1 << 20;
const request = Buffer.alloc(most + 4096);

function reply(unique: bigint, body: Buffer, error = 0): void {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(16 + body.length, 0);
  header.writeInt32LE(-error, 4);
  header.writeBigUInt64LE(unique, 8);
  writeSync(fuse, Buffer.concat([header, body]));
}

function record(kind: 0 | 1, offset: number, data: Buffer): void {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(kind, 0);
  header.writeUInt32LE(data.length, 4);
  header.writeBigUInt64LE(BigInt(offset), 8);
  writeSync(log, Buffer.concat([header, data]));
}

const nothing = Buffer.alloc(0);

function initialized(): Buffer {
  const body = Buffer.alloc(64);
  for (const [at, value] of [
    [0, 7],
    [4, 31],
    [8, most],
    [12, (1 << 22) | (1 << 5)], // FUSE_MAX_PAGES, FUSE_BIG_WRITES
    [20, most],
    [24, 1],
  ] as const) {
    body.writeUInt32LE(value, at);
  }
  body.writeUInt16LE(most / 4096, 28);
  return body;
}

function attributes(): Buffer {
  const body = Buffer.alloc(104);
  body.writeBigUInt64LE(3600n, 0);
  body.writeBigUInt64LE(1n, 16);
  body.writeBigUInt64LE(BigInt(size), 24);
  body.writeBigUInt64LE(BigInt(size / 512), 32);
  body.writeUInt32LE(0o100600, 76);
  body.writeUInt32LE(1, 80);
  body.writeUInt32LE(4096, 96);
  return body;
}

function answer(opcode: number, body: Buffer): Buffer | undefined {
  const offset = body.length >= 20 ? Number(body.readBigUInt64LE(8)) : 0;
  const length = body.length >= 20 ? body.readUInt32LE(16) : 0;
  switch (opcode) {
    case op.init:
      return initialized();
    case op.getattr:
      return attributes();
    case op.open: {
      const opened = Buffer.alloc(16);
      opened.writeUInt32LE(1, 8); // FOPEN_DIRECT_IO
      return opened;
    }
    case op.read:
      return disk.subarray(offset, Math.min(offset + length, size));
    case op.write: {
      const data = body.subarray(40, 40 + length);
      data.copy(disk, offset);
      record(0, offset, data);
      const written = Buffer.alloc(8);
      written.writeUInt32LE(length, 0);
      return written;
    }
    case op.fsync:
      record(1, 0, nothing);
      return nothing;
    case op.flush:
    case op.release:
      return nothing;
    default:
      return undefined;
  }
}

process.stdout.write('ready\n');
for (;;) {
  let length: number;
  try {
    length = readSync(fuse, request, 0, request.length, null);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === ENODEV) break;
    if (['EINTR', 'ENOENT', 'EAGAIN'].includes((error as NodeJS.ErrnoException).code ?? '')) continue;
    throw error;
  }
  const opcode = request.readUInt32LE(4);
  const unique = request.readBigUInt64LE(8);
  if (opcode === op.forget || opcode === batchForget || opcode === interrupt) continue;
  const answered = answer(opcode, request.subarray(IN_HEADER, length));
  reply(unique, answered ?? nothing, answered === undefined ? ENOSYS : 0);
}

/** The files of this very Node on this machine: enough files for a root file system that runs it. */
import { closeSync, existsSync, openSync, readSync } from 'node:fs';
import { constants, copyFile, link, mkdir, realpath } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';

export interface NodeFiles {
  readonly program: string;
  /** The dynamic loader that it asks for; a static program asks for none. */
  readonly loader: string | undefined;
  /** The loader, and the C library with its kin. */
  readonly system: readonly string[];
  /** All others. */
  readonly libraries: readonly string[];
}

export function findNodeFiles(): NodeFiles {
  const loader = readInterpreter(process.execPath);
  const linked = new Set([...(loader === undefined ? [] : [loader]), ...sharedObjects()]);
  const system = [...linked].filter((path) => path === loader || C_LIBRARY.test(basename(path)));
  return {
    program: process.execPath,
    loader,
    // The loader finds libraries outside its own directories by this cache.
    system: [...system, ...['/etc/ld.so.cache'].filter((path) => existsSync(path))],
    libraries: [...[...linked].filter((path) => !system.includes(path)), ...scriptsOutsideOfNode()],
  };
}

const C_LIBRARY = /^(ld|libc|libm|libdl|librt|libpthread)[-.]/;

/** By the names by which the loader asked for them, which are links mostly. */
function sharedObjects(): string[] {
  const report = process.report.getReport() as { sharedObjects?: string[] };
  // Neither the addon nor what the kernel maps (linux-vdso) is Node's.
  const isFile = (path: string) => path.startsWith('/') && !path.endsWith('.node') && path !== process.execPath;
  return (report.sharedObjects ?? []).filter(isFile).map((path) => resolve(path));
}

/** Builds of some distributions keep scripts of Node's own outside of the program. */
function scriptsOutsideOfNode(): string[] {
  const { defines = [] } = process.config.target_defaults as { defines?: string[] };
  const paths = defines.map((define) => /^NODE_SHARED_BUILTIN_\w+_PATH=["']?(\/[^"']+)/.exec(define)?.[1]);
  return paths.filter((path) => path !== undefined && existsSync(path)) as string[];
}

/** The loader that a program asks for, elf(5): PT_INTERP among its program headers. */
function readInterpreter(program: string): string | undefined {
  const file = openSync(program, 'r');
  const read = (offset: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    readSync(file, bytes, 0, length, offset);
    return bytes;
  };
  try {
    const header = read(0, ELF.headerSize);
    if (!header.subarray(0, ELF.identity.length).equals(ELF.identity)) return undefined;
    const [size, count] = [header.readUInt16LE(ELF.entrySizeAt), header.readUInt16LE(ELF.entryCountAt)];
    const table = read(Number(header.readBigUInt64LE(ELF.tableOffsetAt)), size * count);
    for (let at = 0; at < table.length; at += size) {
      if (table.readUInt32LE(at) !== ELF.PT_INTERP) continue;
      const [offset, length] = [table.readBigUInt64LE(at + 8), table.readBigUInt64LE(at + 32)].map(Number);
      // It ends in a NUL.
      return read(offset as number, (length as number) - 1).toString();
    }
    return undefined;
  } finally {
    closeSync(file);
  }
}

/** 64 bit, little endian: what the addon is built for. */
const ELF = {
  identity: Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1]),
  headerSize: 64,
  tableOffsetAt: 32,
  entrySizeAt: 54,
  entryCountAt: 56,
  PT_INTERP: 3,
} as const;

/** Puts files of this machine at the same paths below `root`, the files themselves for links to them. */
export async function putFiles(root: string, paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const place = join(root, path);
    await mkdir(dirname(place), { recursive: true });
    await linkOrCopy(await realpath(path), place);
  }
}

/** A lower layer is never written to, so that a hard link is as good as a copy, where there can be one. */
async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch {
    await copyFile(from, to, constants.COPYFILE_FICLONE);
  }
}

/** Whole trees, to be compared: what two unpackings have made, or two mounts show. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** An object of a tree. Names are latin1: a character for each byte. */
export interface Described {
  readonly type: string;
  readonly mode: number;
  readonly owner: string;
  readonly size: number;
  /** The digest of a file, the target of a symbolic link, the number of a device. */
  readonly content: string;
  readonly mtime: bigint;
  /** The first path in byte order with the same inode, where there are several. */
  readonly linkedTo?: string;
  readonly xattrs: Readonly<Record<string, string>>;
}

export type Tree = Readonly<Record<string, Described>>;

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');

const withoutEscapes = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** By getfattr(1): the values in base 16, by path. */
function attributesBelow(dir: string): Map<string, Record<string, string>> {
  const args = ['-R', '-P', '-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', dir];
  const text = execFileSync('getfattr', args, { maxBuffer: 2 ** 30, stdio: ['ignore', 'pipe', 'ignore'] });
  const found = new Map<string, Record<string, string>>();
  for (const part of text.toString('latin1').split('\n\n')) {
    const [first = '', ...lines] = part.split('\n').filter((line) => line !== '');
    if (!first.startsWith('# file: ')) continue;
    const path = withoutEscapes(first.slice('# file: '.length)).replace(/\/+/g, '/');
    const pairs = lines.map((line) => {
      const at = line.lastIndexOf('=0x') < 0 ? line.length : line.lastIndexOf('=0x');
      return [withoutEscapes(line.slice(0, at)), line.slice(at + 3)] as const;
    });
    found.set(path, Object.fromEntries(pairs.filter(([name]) => name !== 'security.selinux')));
  }
  return found;
}

export function describeTree(dir: string): Tree {
  const attributes = attributesBelow(dir);
  const byInode = new Map<string, string>();
  const tree: Record<string, Described> = {};
  const visit = (path: string): void => {
    const whole = bytes(path === '' ? dir : `${dir}/${path}`);
    const found = lstatSync(whole, { bigint: true });
    const inode = `${found.dev}:${found.ino}`;
    const isDirectory = found.isDirectory();
    const linkedTo = !isDirectory && found.nlink > 1n ? (byInode.get(inode) ?? path) : undefined;
    if (linkedTo === path) byInode.set(inode, path);
    const type = Number(found.mode >> 12n);
    const content = found.isFile()
      ? createHash('sha256').update(readFileSync(whole)).digest('hex').slice(0, 16)
      : found.isSymbolicLink()
        ? readlinkSync(whole, 'latin1')
        : found.isCharacterDevice() || found.isBlockDevice()
          ? String(found.rdev)
          : '';
    tree[path] = {
      type: types[type] ?? String(type),
      mode: Number(found.mode & 0o7777n),
      owner: `${found.uid}:${found.gid}`,
      size: found.isFile() ? Number(found.size) : 0,
      content,
      mtime: found.mtimeNs,
      ...(linkedTo !== undefined && { linkedTo }),
      xattrs: attributes.get(whole.toString('latin1')) ?? {},
    };
    if (!isDirectory) return;
    const names = readdirSync(whole, 'latin1').sort(compare);
    for (const name of names) visit(path === '' ? name : `${path}/${name}`);
  };
  visit('');
  // An overlay counts links that it does not show.
  const sizes = new Map<string, number>();
  for (const { linkedTo } of Object.values(tree)) {
    if (linkedTo !== undefined) sizes.set(linkedTo, (sizes.get(linkedTo) ?? 0) + 1);
  }
  return Object.fromEntries(
    Object.entries(tree).map(([path, { linkedTo, ...rest }]) => [
      path,
      linkedTo === undefined || sizes.get(linkedTo) === 1 ? rest : { ...rest, linkedTo },
    ]),
  );
}

/** By the first four bits of the mode. */
const types: Readonly<Record<number, string>> = {
  1: 'fifo',
  2: 'character',
  4: 'directory',
  6: 'block',
  8: 'file',
  10: 'symlink',
  12: 'socket',
};

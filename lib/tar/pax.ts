/** Records of extended headers: `LENGTH KEYWORD=VALUE\n`, pax(1). Keywords and values are bytes (latin1). */

export const XATTR = 'SCHILY.xattr.';
const LIBARCHIVE_XATTR = 'LIBARCHIVE.xattr.';
const SELINUX = 'RHT.security.selinux';

const NEWLINE = 0x0a;
const SPACE = 0x20;
const EQUALS = 0x3d;

/** The most digits of a length. */
const MOST_DIGITS = 10;

export type PaxRecord = readonly [keyword: string, value: Buffer];

/** Returns the records, or a sentence about the first one that is wrong. */
export function parseRecords(bytes: Buffer): PaxRecord[] | string {
  const records: PaxRecord[] = [];
  for (let at = 0; at < bytes.length; ) {
    let digits = at;
    let length = 0;
    for (; digits < bytes.length && bytes[digits] !== SPACE; digits++) {
      const digit = (bytes[digits] as number) - 0x30;
      if (digit < 0 || digit > 9 || digits - at >= MOST_DIGITS) return 'a record has no length';
      length = length * 10 + digit;
    }
    const end = at + length;
    if (digits === at || end > bytes.length || end <= digits + 1) return 'the length of a record is wrong';
    if (bytes[end - 1] !== NEWLINE) return 'a record does not end where its length says';
    const equals = bytes.indexOf(EQUALS, digits);
    if (equals < 0 || equals >= end - 1) return 'a record has no value';
    if (equals === digits + 1) return 'a record has no keyword';
    records.push([bytes.toString('latin1', digits + 1, equals), bytes.subarray(equals + 1, end - 1)]);
    at = end;
  }
  return records;
}

/** Returns a record. Its length counts its own digits. */
export function formatRecord(keyword: string, value: string): string {
  const rest = ` ${keyword}=${value}\n`;
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return length + rest;
}

/** GNU tar writes these two characters of an attribute's name so, since a keyword ends at the first `=`. */
export const encodeXattrName = (name: string): string => name.replaceAll('%', '%25').replaceAll('=', '%3D');
const decodeXattrName = (name: string): string => name.replace(/%3D|%25/g, (code) => (code === '%3D' ? '=' : '%'));

/** Returns the attribute that a record holds: undefined if it holds none, `'unread'` if its form cannot be read. */
export function toXattr([keyword, value]: PaxRecord): readonly [name: string, value: Buffer] | 'unread' | undefined {
  if (keyword.startsWith(XATTR)) return [decodeXattrName(keyword.slice(XATTR.length)), value];
  if (keyword.startsWith(LIBARCHIVE_XATTR)) {
    const name = keyword
      .slice(LIBARCHIVE_XATTR.length)
      .replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
    const text = value.toString('latin1');
    return /^[A-Za-z0-9+/]*={0,2}$/.test(text) ? [name, Buffer.from(text, 'base64')] : 'unread';
  }
  if (keyword === SELINUX) return ['security.selinux', value];
  const acl = acls[keyword];
  if (acl === undefined) return undefined;
  const binary = parseAcl(value.toString('latin1'));
  return binary === undefined ? 'unread' : [acl, binary];
}

const acls: Readonly<Record<string, string>> = {
  'SCHILY.acl.access': 'system.posix_acl_access',
  'SCHILY.acl.default': 'system.posix_acl_default',
};

/** The tags of an ACL in the kernel's order (linux/posix_acl.h), without and with an id. */
const tags: Readonly<Record<string, readonly [owner: number, named: number]>> = {
  user: [0x01, 0x02],
  group: [0x04, 0x08],
  mask: [0x10, 0x10],
  other: [0x20, 0x20],
};
const NO_ID = 0xffffffff;

/**
 * Returns an ACL in text (acl(5)) as the kernel keeps it, linux/posix_acl_xattr.h. undefined if the text is wrong, or
 * names a user by name only: the ids of this machine are not the archive's.
 */
function parseAcl(text: string): Buffer | undefined {
  const entries: (readonly [tag: number, permissions: number, id: number])[] = [];
  for (const line of text.split(/[,\n]/)) {
    const [entry = ''] = line.split('#');
    if (entry.trim() === '') continue;
    const [kind = '', who = '', access = '', number] = entry.trim().split(':');
    const full = Object.keys(tags).find((tag) => tag === kind || tag.charAt(0) === kind);
    const pair = full === undefined ? undefined : tags[full];
    const id = who === '' ? NO_ID : Number(number ?? (/^\d+$/.test(who) ? who : Number.NaN));
    if (pair === undefined || !Number.isInteger(id) || id > NO_ID || !/^[r-][w-][x-]$/.test(access)) return undefined;
    const permissions = [...access].reduce((bits, letter) => bits * 2 + (letter === '-' ? 0 : 1), 0);
    entries.push([who === '' ? pair[0] : pair[1], permissions, id]);
  }
  entries.sort((a, b) => a[0] - b[0] || a[2] - b[2]);
  const acl = Buffer.alloc(4 + 8 * entries.length);
  acl.writeUInt32LE(2, 0); // POSIX_ACL_XATTR_VERSION
  for (const [i, [tag, permissions, id]] of entries.entries()) {
    acl.writeUInt16LE(tag, 4 + 8 * i);
    acl.writeUInt16LE(permissions, 6 + 8 * i);
    acl.writeUInt32LE(id, 8 + 8 * i);
  }
  return acl;
}

/** Values that are wrong: refused by the library, with the option's name, before the kernel is asked. */
import { outOfRange, wrongType, wrongValue } from './errors.js';
import type { Expected, Given, Row } from './row.js';

/** The kernel is not asked, so that one way is as good as another. */
const ways = ['as it comes'];
const row = (title: string, options: Given, expect: Expected): Row => ({ title, options, expect, ways });

const words: readonly (readonly [option: string, known: string])[] = [
  ['redirectDir', 'nofollow'],
  ['uuid', 'null'],
  ['xino', 'auto'],
  ['verity', 'require'],
  ['fsync', 'strict'],
  ['atime', 'noatime'],
  ['propagation', 'slave'],
];

const switches = ['index', 'nfsExport', 'metacopy'];
const flags = ['volatile', 'userxattr', 'overrideCreds', 'defaultPermissions'];
const ours = ['readonly', 'readonlySuperblock', 'nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime', 'create'];

export const valueRows: readonly Row[] = [
  ...words.flatMap(([option, known]): Row[] => [
    row(
      `${option}: an unknown word`,
      { [option]: 'bogus' },
      wrongValue(new RegExp(`"${option}".*'${known}'.*'bogus'`)),
    ),
    row(
      `${option}: in capitals`,
      { [option]: known.toUpperCase() },
      wrongValue(new RegExp(`"${option}".*'${known.toUpperCase()}'`)),
    ),
    row(`${option}: an empty word`, { [option]: '' }, wrongValue(new RegExp(`"${option}".*''`))),
    row(`${option}: a number`, { [option]: 1 }, wrongType(new RegExp(`"${option}".* 1$`))),
    row(`${option}: true`, { [option]: true }, wrongType(new RegExp(`"${option}".* true$`))),
  ]),
  ...[...switches, ...flags, ...ours].map((option) =>
    row(`${option}: a word`, { [option]: 'on' }, wrongType(new RegExp(`"${option}".*true or false.*'on'`))),
  ),
  ...[...switches, ...flags].map((option) =>
    row(`${option}: null`, { [option]: null }, wrongType(new RegExp(`"${option}".*null`))),
  ),
  row('fsync: the word of an earlier proposal', { fsync: 'ordered' }, wrongValue(/"fsync".*'strict'.*'ordered'/)),
  row('fsync: volatile, which is an option of its own', { fsync: 'volatile' }, wrongValue(/"fsync".*'volatile'/)),
  row('an unknown option', { bogus: 'on' }, wrongValue(/"bogus"/)),
  row('the negation of an option', { nouserxattr: true }, wrongValue(/"nouserxattr".*"userxattr"/)),
  row("the kernel's name of an option", { nfs_export: true }, wrongValue(/"nfs_export".*"nfsExport"/)),
  row('an option that never was', { neverWas: true }, wrongValue(/"neverWas"/)),
  row('a mount attribute by its word', { noatime: true }, wrongValue(/"noatime"/)),
  row('an option with a space before it', { ' index': true }, wrongValue(/" index".*"index"/)),
  row('an empty upperdir', { upperdir: '' }, wrongValue(/"upperdir".*empty/)),
  row('an empty workdir', { workdir: '' }, wrongValue(/"workdir".*empty/)),
  row('an empty lowerdir', { lowerdir: '' }, wrongValue(/"lowerdir".*empty/)),
  row('an empty path among the lowerdirs', { lowerdir: ['l1', ''] }, wrongValue(/"lowerdir\[1\]".*empty/)),
  row('an empty datadir', { datadir: [''] }, wrongValue(/"datadir\[0\]".*empty/)),
  row('a target with NUL', { target: 'm\0' }, wrongValue(/"target".*NUL/)),
  row('a datadir that is a number', { datadir: 3 }, wrongType(/"datadir".*3/)),
  row('a list as upperdir', { upperdir: ['u'] }, wrongType(/"upperdir"/)),
  row('no lowerdir at all', { lowerdir: undefined }, wrongType(/"lowerdir".*undefined/)),
  row('an empty list of datadirs', { datadir: [] }, outOfRange(/"datadir".*1 to 500.*0 paths/)),
  row('an empty source', { source: '' }, wrongValue(/"source".*1 to 255/)),
  row('a source of 256 bytes', { source: 's'.repeat(256) }, wrongValue(/"source".*255/)),
  row('a source of 255 characters and more bytes', { source: 'ö'.repeat(200) }, wrongValue(/"source".*255/)),
  row('a source with NUL', { source: 'a\0b' }, wrongValue(/"source".*NUL/)),
  row('an empty context', { context: '' }, wrongValue(/"context"/)),
  row('allowDegraded with a layer', { allowDegraded: ['upperdir'] }, wrongValue(/"allowDegraded\[0\]".*'upperdir'/)),
  row('allowDegraded a word', { allowDegraded: 'verity' }, wrongType(/"allowDegraded".*'verity'/)),
];

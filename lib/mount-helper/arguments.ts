/** `mount.overlay SOURCE TARGET [-sfnv] [-N ns] [-o OPTIONS] [-t type]`, as mount(8) calls its helpers. Pure. */
import { parseArgs } from 'node:util';
import { type Bytes, toPath } from '../cli/command-line.js';
import { UsageError } from '../cli/usage-error.js';
import type { Path } from '../paths.js';

export interface Request {
  readonly source: Path;
  readonly target: Path;
  /** The path of the mount namespace in which all paths are meant. */
  readonly namespace?: Path;
  /** The options of all `-o`, joined by commas. */
  readonly options: Buffer;
  /** True to leave out options that the file system does not know. */
  readonly isSloppy: boolean;
  /** True to mount nothing. */
  readonly isFake: boolean;
  readonly isVerbose: boolean;
}

const usage = 'Usage: mount.overlay SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t overlay]';

export function readArguments(args: readonly Bytes[]): Request {
  const { values, positionals, tokens } = parseArgs({
    args: [...args],
    options: {
      sloppy: { type: 'boolean', short: 's' },
      fake: { type: 'boolean', short: 'f' },
      'no-mtab': { type: 'boolean', short: 'n' },
      verbose: { type: 'boolean', short: 'v' },
      namespace: { type: 'string', short: 'N' },
      options: { type: 'string', short: 'o', multiple: true },
      types: { type: 'string', short: 't' },
    },
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  for (const token of tokens) {
    if (token.kind !== 'option') continue;
    if (!/^-[sfnvNot]$/.test(token.rawName)) throw new UsageError(`unknown option '${token.rawName}'`, usage);
    if (/[Not]$/.test(token.rawName) && token.value === undefined) {
      throw new UsageError(`${token.rawName} needs a value`, usage);
    }
  }
  const [source, target, ...more] = positionals;
  if (source === undefined || target === undefined || target === '' || more.length > 0) {
    throw new UsageError(`a source and a target, not ${positionals.length} operands`, usage);
  }
  const { types = 'overlay' } = values;
  if (types !== 'overlay') throw new UsageError(`mounts overlay, not the type '${types}'`, usage);
  return {
    source: toPath(source),
    target: toPath(target),
    ...(typeof values.namespace === 'string' && { namespace: toPath(values.namespace) }),
    options: Buffer.from((values.options ?? []).join(','), 'latin1'),
    isSloppy: values.sloppy === true,
    isFake: values.fake === true,
    isVerbose: values.verbose === true,
  };
}

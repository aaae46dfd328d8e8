/** The line of a mount in /proc/thread-self/mountinfo, read without the library. */
import { readFileSync } from 'node:fs';

export interface Line {
  readonly attributes: readonly string[];
  readonly superblock: string;
  readonly propagation: string;
  readonly source: string;
  /** Overlayfs' own options, but for the layers: null for a bare word. */
  readonly options: ReadonlyMap<string, string | null>;
  readonly lowerdir: readonly string[];
  readonly datadir: readonly string[];
  readonly upperdir: readonly string[];
  readonly workdir: readonly string[];
}

const plain = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));

/** The text of `lowerdir` as its layers: one colon before a lower one, two before a data-only one. */
function splitLayers(text: string): { lower: string[]; data: string[] } {
  const lower: string[] = [];
  const data: string[] = [];
  let [list, layer] = [lower, ''];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '\\') layer += text[++i];
    else if (text[i] === ':') {
      list.push(layer);
      layer = '';
      list = text[i + 1] === ':' ? data : lower;
      if (list === data) i++;
    } else layer += text[i];
  }
  list.push(layer);
  return { lower, data };
}

const utf8 = (text: string): string => Buffer.from(text, 'latin1').toString();

function parse(line: string): Line {
  const [front = '', back = ''] = line.split(' - ');
  const [, , , , , attributes = '', ...tags] = front.split(' ');
  const [, source = '', superOptions = ''] = back.split(' ');
  const options = new Map<string, string | null>();
  const layers: Record<'lowerdir' | 'datadir' | 'upperdir' | 'workdir', string[]> = {
    lowerdir: [],
    datadir: [],
    upperdir: [],
    workdir: [],
  };
  const [superblock = '', ...rest] = superOptions.split(',');
  for (const option of rest) {
    const at = option.indexOf('=');
    const [name, value] = at < 0 ? [option, null] : [option.slice(0, at), utf8(plain(option.slice(at + 1)))];
    if (name === 'lowerdir') {
      const { lower, data } = splitLayers(value ?? '');
      layers.lowerdir.push(...lower);
      layers.datadir.push(...data);
    } else if (name === 'lowerdir+') layers.lowerdir.push(value ?? '');
    else if (name === 'datadir+') layers.datadir.push(value ?? '');
    else if (name === 'upperdir' || name === 'workdir') layers[name].push(value ?? '');
    else options.set(name, value);
  }
  const group = tags.map((tag) => tag.split(':')[0] ?? '').join(' ');
  return {
    attributes: attributes.split(','),
    superblock,
    propagation: group === '' ? 'private' : group,
    source: plain(source),
    options,
    ...layers,
  };
}

/** The topmost overlay at a target of plain name; undefined where there is none. */
export function overlayAt(target: string): Line | undefined {
  const lines = readFileSync('/proc/thread-self/mountinfo', 'latin1')
    .split('\n')
    .filter((line) => line.split(' ')[4] === target && line.includes(' - overlay '));
  const line = lines.at(-1);
  return line === undefined ? undefined : parse(line);
}

/** The options of an overlay by its line alone, for a line from elsewhere. */
export const parseLine = parse;

/** Describes holders in words. */
import type { Holder, Holders, Holding } from '../holder.js';
import { formatBytes, quotePath } from '../paths.js';

const SHOWN = 3;
const LONGEST_COMMAND = 40;

function shorten(text: string): string {
  const shown = formatBytes(text);
  return shown.length > LONGEST_COMMAND ? `${shown.slice(0, LONGEST_COMMAND - 3)}...` : shown;
}

const things: Readonly<Record<Holding, string>> = {
  cwd: 'working directory',
  root: 'root directory',
  executable: 'running program',
  file: 'open file',
  mapping: 'mapped file',
  socket: 'bound socket',
  inside: 'mount inside it at',
  loop: 'backing file',
  swap: 'swap file',
  mount: 'mount at',
  namespace: "kept namespace's mount at",
  layer: 'overlay at',
};

/** Describes in a word or two how it is held. */
export const whatText = ({ what }: Holder): string => things[what].replace(/(?: inside it)? at$/, '');

/** Describes a holder in a few words. */
function holderText({ what, pid, command, path, descriptor, device, boundAt, layer, copy, namespace }: Holder): string {
  const who = pid === undefined ? device : `${shorten(command ?? '')} (pid ${pid})`;
  const thing = `${things[what]} ${quotePath(path)}`;
  const more = [
    ...(descriptor === undefined ? [] : [`descriptor ${descriptor}`]),
    ...(boundAt === undefined ? [] : [`bound to ${quotePath(boundAt)}`]),
    ...(layer === undefined ? [] : [`layer ${quotePath(layer)}`]),
    ...(copy === undefined
      ? []
      : [copy === '' ? 'through a mount without a place' : `through the mount at ${quotePath(copy)}`]),
    ...(namespace === undefined ? [] : [`mount namespace ${namespace}`]),
  ];
  return `${who === undefined ? '' : `${who}: `}${thing}${more.length === 0 ? '' : ` (${more.join(', ')})`}`;
}

/** Describes the first holders, and says how many more there are. */
export function holdersText(holders: Holders): string {
  const shown = holders.slice(0, SHOWN).map(holderText);
  if (holders.length > SHOWN) shown.push(`${holders.length - SHOWN} more`);
  return shown.join('; ');
}

/** Says who uses a mount, as the end of a sentence. */
export function usedByText(holders: Holders): string {
  const unseen = unseenText(holders);
  const who = holders.length === 0 ? ', and no user of it could be identified' : `: in use by ${holdersText(holders)}`;
  return `${who}${unseen === '' ? '' : ` (${unseen})`}`;
}

/** Says which part of the search is missing. */
export function unseenText({ hidden, complete }: Pick<Holders, 'hidden' | 'complete'>): string {
  const parts = [
    ...(hidden === 0 ? [] : [`this process may not look at ${hidden} ${hidden === 1 ? 'process' : 'processes'}`]),
    ...(complete ? [] : ['the search is not complete']),
  ];
  return parts.join('; ');
}

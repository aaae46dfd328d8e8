/** `overlayfs features` */
import type { KernelFeatures } from '../features/record.js';
import { reasons } from '../reasons.js';
import { features as askFeatures, type Features } from '../rootless/lease.js';
import { sentence } from '../text.js';
import { type Paint, paintFor } from './colour.js';
import type { Command, Outcome } from './command.js';
import { kebab } from './flags.js';

const causes = {
  'no-privilege': 'the process may not mount',
  'overlay-unavailable': 'the kernel has no overlay file system',
} as const;

type Forbidding = keyof typeof causes;

/** Returns the reasons why nothing can be mounted here. */
export function forbids({ mayMount, overlay }: KernelFeatures): Forbidding[] {
  return [
    ...(mayMount === false ? (['no-privilege'] as const) : []),
    ...(overlay === false ? (['overlay-unavailable'] as const) : []),
  ];
}

/** Features in words; a feature without an entry goes by its name. */
const labels: Readonly<Partial<Record<string, string>>> = {
  userNamespace: 'in a user namespace of its own',
  mayMount: 'this process may mount',
  overlay: 'overlay file system',
  mountApi: 'fsopen(2) and related calls',
  fsContext: 'overlayfs takes options one by one',
  lowerdirAppend: 'lower layers one by one',
  layerDescriptors: 'layers by descriptor',
  mountSetattr: 'mount_setattr(2)',
  mountBeneath: 'mounting beneath a mount',
  statmount: 'statmount(2) and listmount(2)',
  openTreeAttr: 'open_tree_attr(2)',
  mountEvents: 'fanotify(7) reports mounts',
  uniqueMountId: 'mount ids that are never reused',
  rootless: 'detached mounts without privilege',
};

function verdict(found: Features, paint: Paint): string {
  const why = forbids(found).map((reason) => {
    const problem = sentence(`this process cannot mount: ${causes[reason]}`);
    return `${paint('red', problem)} ${sentence(reasons[reason])}\n`;
  });
  if (why.length > 0) return why.join('') + rootlessVerdict(found, paint);
  if (found.mayMount === true) return `${paint('green', 'This process can mount overlays.')}\n`;
  return `${paint('yellow', 'Only an attempt shows if this process can mount overlays.')}\n`;
}

/** Returns the verdict for users who cannot mount otherwise. */
function rootlessVerdict({ rootless, rootlessForbidden, overlay }: Features, paint: Paint): string {
  if (overlay === false) return '';
  return rootless
    ? `${paint('green', 'It can still mount without a target: with rootless in a program, or by overlayfs run.')}\n`
    : `${paint('red', 'It cannot mount without a target either:')} ${rootlessForbidden}.\n`;
}

function show(answer: unknown, paint: Paint): string {
  if (answer === true) return paint('green', 'yes');
  if (answer === false) return paint('red', 'no');
  return answer === 'unknown' ? paint('yellow', 'unknown') : paint('green', `yes, ${String(answer)}`);
}

function table(rows: readonly (readonly [label: string, answer: unknown])[], paint: Paint): string {
  const width = Math.max(...rows.map(([label]) => label.length)) + 2;
  return rows.map(([label, answer]) => `  ${label.padEnd(width)}${show(answer, paint)}\n`).join('');
}

export function featuresText(found: Features, paint: Paint): string {
  const { release, pageSize, options, defaults, rootlessForbidden: _, ...answers } = found;
  const parts = [
    `Linux ${release}, pages of ${pageSize} bytes\n`,
    verdict(found, paint),
    `${paint('bold', 'kernel and process')}\n${table(
      Object.entries(answers).map(([name, answer]) => [labels[name] ?? kebab(name).replaceAll('-', ' '), answer]),
      paint,
    )}`,
    `${paint('bold', "overlayfs' options")}\n${table(Object.entries(options), paint)}`,
  ];
  if (Object.keys(defaults).length > 0) {
    parts.push(`${paint('bold', "the module's defaults")}\n${table(Object.entries(defaults), paint)}`);
  }
  return parts.join('\n');
}

async function run(): Promise<Outcome> {
  const found = await askFeatures();
  const hints = forbids(found).map((reason) => ({ reason, hint: sentence(reasons[reason]) }));
  return {
    text: featuresText(found, paintFor(process.stdout.isTTY, process.env)),
    json: { features: found, forbids: hints },
  };
}

export const features: Command = {
  about: 'Shows what this kernel supports for overlays, and what this process may do. Mounts nothing.',
  notes: 'The answers come from the kernel. An answer is unknown if the kernel gives it only with CAP_SYS_ADMIN.',
  examples: ['overlayfs features', 'overlayfs unshare overlayfs features', 'overlayfs features --json'],
  run,
};

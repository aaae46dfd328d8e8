/** How long programs take that begin with this library, beside a Node that does nothing. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, realpathSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { bindSync, unmountSync } from 'overlayfs';
import { atMost, firstSet, type Kind } from '../kind.js';
import { packageRoot } from '../peers.js';
import type { LayerSet, Site } from '../stage.js';

/** In ms, from the start to the end of a program. */
function run(command: string, args: readonly string[]): number {
  const start = performance.now();
  const { status, stderr, error } = spawnSync(command, args, { cwd: packageRoot(), encoding: 'utf8' });
  const time = performance.now() - start;
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr} ${error?.message ?? ''}`);
  return time;
}

const runNode = (...args: readonly string[]): number => run(process.execPath, args);

/** The helper as mount(8) finds it, by its name in /sbin, which holds nothing else meanwhile. */
function installHelper({ many }: Site): () => void {
  const sbin = realpathSync('/sbin');
  mkdirSync(many, { recursive: true });
  symlinkSync(join(packageRoot(), 'dist/mount-helper.cjs'), join(many, 'mount.overlay'));
  bindSync(many, sbin);
  return () => unmountSync(sbin);
}

function mountByHelper({ lowerdir, upperdir, workdir, target }: LayerSet): number {
  const options = `lowerdir=${lowerdir},upperdir=${upperdir},workdir=${workdir}`;
  const time = run('mount', ['-t', 'overlay', 'bench', '-o', options, target]);
  unmountSync(target);
  return time;
}

const start = (what: string, limit: number, ours: (site: Site) => number, setUp?: Kind['setUp']): Kind => ({
  what: `${what} : node -e 0`,
  unit: 'ms',
  ratio: 'ours / peer',
  on: ['tmpfs'],
  waits: false,
  spreads: true,
  warmUpBlocks: 2,
  blocks: (site) => [() => ours(site), () => runNode('-e', '0')],
  bound: (_, spinner) => (spinner ? undefined : atMost(limit)),
  ...(setUp && { setUp }),
});

export const startUpKinds: readonly Kind[] = [
  start('import', 1.25, () => runNode('--input-type=module', '-e', "import 'overlayfs'")),
  start('overlayfs --version', 1.4, () => runNode(join(packageRoot(), 'dist/cli/main.js'), '--version')),
  start('mount.overlay', 1.5, (site) => mountByHelper(firstSet(site)), installHelper),
];

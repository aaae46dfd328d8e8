/**
 * Random sequences of everything that mounts, unmounts and keeps overlays alive, in this thread, a worker and other
 * processes. After each step the kernel is asked which directories are in use; the library has to refuse these, and no
 * others.
 */
import { type ChildProcess, execFileSync, fork, spawn as spawnProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ExecutionContext } from 'ava';
import {
  bindSync,
  type Mount,
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  type OverlayMount,
  type OverlayOptions,
  spawn,
  unmount,
  unmountSync,
} from 'overlayfs';
import { askUse } from '#lib/in-use/probe.js';
import { runSync } from '#lib/kernel/task.js';
import {
  generator,
  MNT_DETACH,
  makeNamespace,
  native,
  scaled,
  scratch,
  startWorker,
  withLibrary,
} from '../support/index.js';

const STEPS = scaled(2_000, 200);
const SLOTS = 6;
/** The most mounts, files and programs at once. When there are as many, each step ends one. */
const MOST_THINGS = 14;

/** Something that uses a slot's overlay, and the ways in which it can end. */
interface Thing {
  readonly what: string;
  /** A mount whose files can be opened, and that can be bound, cloned or shown. */
  readonly mount?: Mount;
  readonly ends: readonly (() => unknown)[];
}

/** Mounts and unmounts by path for whoever asks; `exit` leaves the mounts. */
const helper = `
const { mountOverlaySync, unmountSync } = overlayfs;
const answer = parentPort ? (m) => parentPort.postMessage(m) : (m) => process.send(m);
const held = new Map();
(parentPort ?? process).on('message', ({ options, target, detach }) => {
  try {
    if (options) { const m = mountOverlaySync(options); held.set(options.target ?? m.path, m); answer({ path: options.target ?? m.path }); }
    else if (held.has(target)) { held.get(target).unmountSync(detach ? { detach } : {}); held.delete(target); answer({}); }
    else { unmountSync(target, detach ? { detach } : {}); answer({}); }
  } catch (error) { answer({ reason: error.reason ?? String(error) }); }
});
answer({});
`;

type Message = { readonly options?: OverlayOptions; readonly target?: string; readonly detach?: boolean };
type Answer = { readonly path?: string; readonly reason?: string };

class Helper {
  readonly #peer: Worker | ChildProcess;
  private constructor(peer: Worker | ChildProcess) {
    this.#peer = peer;
  }
  static async worker(): Promise<Helper> {
    const worker = startWorker(helper);
    await once(worker, 'message');
    return new Helper(worker);
  }
  static async process(dir: string): Promise<Helper> {
    const file = join(dir, 'helper.mjs');
    writeFileSync(file, withLibrary(helper));
    const child = fork(file, { execArgv: [] });
    await once(child, 'message');
    return new Helper(child);
  }
  async ask(message: Message): Promise<Answer> {
    const answered = once(this.#peer, 'message');
    if (this.#peer instanceof Worker) this.#peer.postMessage(message);
    else this.#peer.send(message);
    return ((await answered) as [Answer])[0];
  }
  async end(): Promise<void> {
    if (this.#peer instanceof Worker) {
      await this.#peer.terminate();
    } else {
      await kill(this.#peer);
    }
  }
}

/** Runs the steps; the seed is in the log. */
export async function runModel(t: ExecutionContext): Promise<void> {
  t.timeout(60_000 + 300 * STEPS);
  const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);
  t.log(`seed ${seed}, ${STEPS} steps`);
  const random = generator(seed);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const dir = scratch(t, random(2) ? 'disk' : 'tmpfs');
  const base = join(dir, 'lower');
  mkdirSync(base);
  writeFileSync(join(base, 'file'), 'text');
  const slots = Array.from({ length: SLOTS }, (_, i) => ({
    upperdir: join(dir, `upper${i}`),
    workdir: join(dir, `work${i}`),
  }));
  for (const { upperdir, workdir } of slots) for (const path of [upperdir, workdir]) mkdirSync(path);
  const things = new Set<Thing>();
  const worker = await Helper.worker();
  const started = [worker];
  let other = await Helper.process(dir);
  started.push(other);
  let count = 0;
  const place = (): string => {
    const path = join(dir, `place${count++}`);
    mkdirSync(path);
    return path;
  };
  const trace: string[] = [];

  /** Mostly upper and work of one slot; at times those of two. */
  const layersOf = (): OverlayOptions => {
    const { upperdir } = pick(slots);
    const own = slots.find((slot) => slot.upperdir === upperdir) as (typeof slots)[number];
    return { lowerdir: base, upperdir, workdir: random(8) ? own.workdir : pick(slots).workdir };
  };
  const byPath = (target: string, remove: () => unknown): Thing['ends'] => [
    remove,
    () => unmount(target),
    () => unmountSync(target),
    () => unmount(target, { detach: true }),
    () => check(native.umount(target, 0)),
    () => check(native.umount(target, MNT_DETACH)),
    () => execFileSync('umount', ['-l', target], { stdio: 'pipe' }),
  ];
  const check = (errno: number): void => {
    if (errno !== 0) throw new OverlayError({ errno, reason: 'mount-busy', what: 'umount2' });
  };
  const ofMount = (what: string, mount: Mount): Thing => {
    const target = mount.target as string | undefined;
    const own = [() => mount.unmount(), () => mount.unmountSync(), () => mount.unmount({ detach: true })];
    return { what, mount, ends: target === undefined ? own : [...own, ...byPath(target, () => mount.unmount())] };
  };
  const mounted = (): readonly Mount[] => [...things].flatMap(({ mount }) => mount ?? []);

  /** Each makes one more thing, or throws an OverlayError. */
  const begin: Readonly<Record<string, () => Promise<Thing | undefined> | Thing | undefined>> = {
    path: async () => ofMount('path', await mountOverlay({ ...layersOf(), target: place() })),
    pathSync: () => ofMount('pathSync', mountOverlaySync({ ...layersOf(), target: place() })),
    created: () => {
      const at = join(dir, `made${count++}`);
      const options = { upperdir: join(at, 'u'), workdir: join(at, 'w'), target: place(), create: true };
      const mount = mountOverlaySync({ lowerdir: base, ...options });
      return ofMount('created', mount);
    },
    detached: async () => ofMount('detached', await mountOverlay(layersOf())),
    rootless: async () => ofMount('rootless', await mountOverlay({ ...layersOf(), rootless: pick([true, 'keep']) })),
    shared: () => ofMount('shared', mountOverlaySync({ ...layersOf(), target: place(), exclusive: true })),
    worker: async () => {
      const detached = random(2) === 0;
      const { path, reason } = await worker.ask({
        options: { ...layersOf(), ...(!detached && { target: place() }) },
      });
      if (path === undefined) throw toError(reason);
      const stop = (detach: boolean) => () => worker.ask({ target: path, detach });
      return { what: 'worker', ends: detached ? [stop(false)] : [stop(true), ...byPath(path, stop(false))] };
    },
    process: async () => {
      const process = other;
      const { path, reason } = await process.ask({ options: { ...layersOf(), target: place() } });
      if (path === undefined) throw toError(reason);
      const stop = () => (process === other ? process.ask({ target: path }) : unmount(path));
      return { what: 'process', ends: byPath(path, stop) };
    },
    mount8: () => {
      const { upperdir, workdir } = layersOf();
      // As careful as the library, which cannot keep others from being careless.
      if (isUsed(upperdir as string) || isUsed(workdir as string)) return undefined;
      const target = place();
      const options = `lowerdir=${base},upperdir=${upperdir},workdir=${workdir}`;
      execFileSync('mount', ['-t', 'overlay', 'mount8', '-o', options, target], { stdio: 'pipe' });
      return { what: 'mount8', ends: byPath(target, () => unmount(target)) };
    },
    bind: () => {
      const attached = mounted().filter(({ target }) => target !== undefined);
      if (attached.length === 0) return undefined;
      const target = place();
      return ofMount('bind', bindSync(pick(attached).target as string, target));
    },
    clone: async () => {
      const all = mounted().filter(({ isRootless }) => !isRootless);
      return all.length === 0 ? undefined : ofMount('clone', await pick(all).clone());
    },
    replace: async () => {
      const all = mounted().filter((mount): mount is OverlayMount => 'replace' in mount && mount.target !== undefined);
      if (all.length > 0) await pick(all).replace(layersOf());
      return undefined;
    },
    file: () => {
      const all = mounted();
      if (all.length === 0) return undefined;
      const file = openSync(join(String(pick(all).path), 'file'), 'r');
      return { what: 'file', ends: [() => closeSync(file)] };
    },
    cwd: () => {
      const all = mounted().filter(({ target }) => target !== undefined);
      if (all.length === 0) return undefined;
      const child = spawnProcess('sleep', ['600'], { cwd: String(pick(all).path), stdio: 'ignore' });
      return { what: 'cwd', ends: [() => kill(child)] };
    },
    program: async () => {
      const all = mounted();
      if (all.length === 0) return undefined;
      const child = spawn('sh', ['-c', 'echo; exec sleep 600'], {
        mounts: [{ source: pick(all), target: base }],
        stdio: ['ignore', 'pipe', 'ignore'],
      }) as ChildProcess;
      child.on('error', () => {});
      await Promise.race([once(child, 'exit'), once(child.stdout as NodeJS.ReadableStream, 'data')]);
      return { what: 'program', ends: [() => kill(child)] };
    },
    namespace: () => {
      const namespace = makeNamespace();
      return { what: 'namespace', ends: [() => closeSync(namespace)] };
    },
    restart: async () => {
      await other.end();
      other = await Helper.process(dir);
      started.push(other);
      return undefined;
    },
    remake: () => {
      const path = pick([pick(slots).upperdir, pick(slots).workdir]);
      rmSync(path, { recursive: true, force: true });
      mkdirSync(path);
      return undefined;
    },
  };
  const rare = new Set(['process', 'restart', 'mount8', 'program', 'cwd', 'namespace']);
  const names = Object.keys(begin).flatMap((name) => (rare.has(name) ? [name] : [name, name, name, name]));

  const isUsed = (path: string): boolean => runSync(askUse(path, base)) === true;
  const isRefused = ({ upperdir, workdir }: (typeof slots)[number]): boolean => {
    try {
      mountOverlaySync({ lowerdir: base, upperdir, workdir }).unmountSync();
      return false;
    } catch (error) {
      if (error instanceof OverlayError && /^(upper|work)-in-use$/.test(error.reason)) return true;
      throw error;
    }
  };

  try {
    for (let step = 0; step < STEPS; step++) {
      const isEnd = things.size > 0 && random(MOST_THINGS) < things.size;
      let what = isEnd ? 'end' : pick(names);
      try {
        if (isEnd) {
          const thing = pick([...things]);
          what = `end ${thing.what}`;
          await pick(thing.ends)();
          things.delete(thing);
        } else {
          const thing = await begin[what]?.();
          if (thing !== undefined) things.add(thing);
        }
      } catch (error) {
        what = `${what}: ${error instanceof OverlayError ? error.reason : String(error).slice(0, 200)}`;
        const isExpected =
          error instanceof OverlayError
            ? // A clone that a program shows has moved into the program's namespace.
              /in-use|busy|mounted|inside|unsupported|unbindable|shown-before/.test(error.reason)
            : /Command failed: umount/.test(String(error));
        if (!isExpected) {
          t.log(trace.slice(-40).join('\n'));
          throw error;
        }
      }
      trace.push(what);
      const slot = pick(slots);
      const before = isUsed(slot.upperdir) || isUsed(slot.workdir);
      const refused = isRefused(slot);
      // An overlay that a killed process had open can end meanwhile, so either answer of the kernel will do.
      if (refused === before || refused === (isUsed(slot.upperdir) || isUsed(slot.workdir))) continue;
      t.log(trace.slice(-40).join('\n'));
      t.fail(`step ${step}: ${refused ? 'a false refusal' : 'a missed double use'} of ${slot.upperdir}, seed ${seed}`);
      return;
    }
    t.pass();
  } finally {
    for (const helping of started) await helping.end().catch(() => {});
    for (const { what, ends } of things) if (/file|cwd|program|namespace/.test(what)) await ends[0]?.();
    for (const { mount } of things) await mount?.unmount({ detach: true }).catch(() => {});
  }
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

const toError = (reason = 'unexplained'): Error =>
  new OverlayError({
    errno: 16,
    reason: reason as OverlayError['reason'],
    what: `another thread or process: ${reason}`,
  });

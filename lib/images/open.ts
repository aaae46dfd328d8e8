/** An image by its name: opened, unpacked, run and started without a layout or a snapshotter of the caller's own. */
import type { ChildProcess } from 'node:child_process';
import { pick, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { needsUserXattr } from '../features/probe.js';
import { type Change, changes } from '../layers/changes.js';
import type { PathLike } from '../paths.js';
import { withResolvers } from '../promises.js';
import { defaultRoot } from '../snapshots/default-root.js';
import { layersOf } from '../snapshots/mount-all.js';
import { Snapshotter } from '../snapshots/snapshotter.js';
import { type CommitImageOptions, commitImage } from './commit.js';
import { type FindOptions, type Image, openLayout, splitReference } from './layout.js';
import {
  type ContainerResult,
  ownersInside,
  type PreparedContainer,
  type RunContainerOptions,
  runContainer,
  runContainerWith,
  runNames,
} from './run.js';
import { type Unpacked, type UnpackOptions, unpack } from './unpack.js';

export interface OpenImageOptions extends FindOptions {
  /** The snapshots of the layers. Default: the one of `root`, which ends with the image. */
  readonly snapshotter?: Snapshotter | undefined;
  /**
   * The directory of the snapshots. Default: /var/lib/overlayfs for root, else `overlayfs` in $XDG_DATA_HOME or
   * ~/.local/share.
   */
  readonly root?: PathLike | undefined;
}

const names: ReadonlySet<string> = new Set<keyof OpenImageOptions>(['platform', 'snapshotter', 'root']);

export type ImageRunOptions = Omit<RunContainerOptions, 'snapshotter' | 'command'>;
export type ImageStartOptions = Omit<ImageRunOptions, 'commit' | 'onStart'>;

/** Takes `oci:DIR:TAG` apart. */
function toReference(reference: string): { readonly layout: string; readonly tag: string | undefined } {
  if (typeof reference !== 'string') throw invalidArgumentType('reference', "a text like 'oci:DIR:TAG'", reference);
  const name = reference.slice('oci:'.length);
  if (!reference.startsWith('oci:') || name === '' || name.includes('\0')) {
    throw invalidArgumentValue('reference', reference, "must be like 'oci:DIR' or 'oci:DIR:TAG'");
  }
  const { layout, tag } = splitReference(name);
  return { layout, tag: tag || undefined };
}

/** A container that runs or has ended. Its files are there until it is disposed of. */
export class Container {
  /** The files of the container, while it runs: `/proc/self/fd/N` without a runtime. */
  readonly path: string;
  readonly process: ChildProcess;
  /** A promise of the exit code; 128 plus the number of the signal that ended the program. */
  readonly exited: Promise<number>;
  readonly #prepared: PreparedContainer;
  readonly #end: () => Promise<void>;

  /** @internal */
  constructor(
    path: string,
    child: ChildProcess,
    exited: Promise<number>,
    prepared: PreparedContainer,
    end: () => Promise<void>,
  ) {
    this.path = path;
    this.process = child;
    this.exited = exited;
    this.#prepared = prepared;
    this.#end = end;
  }

  /** Yields what the container has changed so far. */
  changes(): AsyncIterable<Change> {
    const { upper, lowers } = layersOf(this.#prepared.mounts);
    return changes({ upperdir: upper, lowerdir: lowers, userxattr: needsUserXattr() });
  }

  /**
   * Waits for the end of the program, and commits what it has changed as an image with this tag. After a failure it can be
   * called again.
   *
   * @throws as `commitImage`
   */
  async commit(tag: string, options?: Omit<CommitImageOptions, 'tag' | 'owners'>): Promise<Image> {
    await this.exited;
    const { image, snapshotter, key, createdBy, subIds } = this.#prepared;
    const owners = ownersInside(subIds);
    return commitImage(image, snapshotter, key, { createdBy, ...options, tag, ...(owners && { owners }) });
  }

  /** Stops the program if it runs, and removes what was not committed. */
  async [Symbol.asyncDispose](): Promise<void> {
    return this.#end();
  }
}

/** An image with the snapshots of its layers. */
export class OpenImage {
  readonly image: Image;
  readonly snapshotter: Snapshotter;
  readonly #isOwn: boolean;

  /** @internal */
  constructor(image: Image, snapshotter: Snapshotter, isOwn: boolean) {
    this.image = image;
    this.snapshotter = snapshotter;
    this.#isOwn = isOwn;
  }

  /** Unpacks the layers into snapshots, as `run` does where it is needed. */
  unpack(options?: UnpackOptions): Promise<Unpacked> {
    return unpack(this.image, this.snapshotter, options);
  }

  /**
   * Runs the image as a container and waits for its end.
   *
   * @param args the program and its arguments. Default: those that the image names
   * @throws {ImageError} `ERR_IMAGE_COMMAND`, and as `start`
   */
  async run(args?: readonly string[], options?: ImageRunOptions): Promise<ContainerResult> {
    return runContainer(this.image, this.#toOptions(args, toOptions(options, imageRunNames)));
  }

  #toOptions<T extends object>(args: readonly string[] | undefined, options: T | undefined) {
    return { ...(options as T), snapshotter: this.snapshotter, ...(args !== undefined && { command: args }) };
  }

  /**
   * Starts the image as a container.
   *
   * @returns a promise of the container, once its process has been started. Dispose of it with `await using`
   * @throws as `run`
   */
  async start(args?: readonly string[], options?: ImageStartOptions): Promise<Container> {
    const stopping = new AbortController();
    const { signal, ...more } = toOptions(options, startNames);
    const given = this.#toOptions(args, {
      ...more,
      signal: signal === undefined ? stopping.signal : AbortSignal.any([signal, stopping.signal]),
    });
    const { promise: released, resolve: release } = withResolvers<void>();
    const { promise: exited, resolve: exit, reject: fail } = withResolvers<number>();
    exited.catch(() => {});
    let prepared: PreparedContainer | undefined;
    return new Promise((resolve, reject) => {
      const over = runContainerWith(
        this.image,
        {
          ...given,
          onStart: ({ path, process: child }) => {
            const end = async (): Promise<void> => {
              stopping.abort();
              release();
              await over.catch(() => {});
            };
            resolve(new Container(path, child, exited, prepared as PreparedContainer, end));
          },
        },
        {
          onPrepared: (made) => {
            prepared = made;
          },
          onEnded: (exitCode) => {
            exit(exitCode);
            return released;
          },
        },
      );
      over.catch((error: unknown) => {
        fail(error);
        reject(error);
      });
    });
  }

  /** Ends the use of the snapshots, which stay for the next time. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isOwn) await this.snapshotter.close();
  }
}

const without = (...others: readonly string[]): ReadonlySet<string> =>
  new Set([...runNames].filter((name) => name !== 'snapshotter' && name !== 'command' && !others.includes(name)));
const imageRunNames = without();
const startNames = without('commit', 'onStart');

/**
 * Opens an image by its name, `oci:DIR:TAG`: DIR is an OCI image layout, as skopeo, buildah and umoci write one. Without
 * the tag, the layout has to have one image.
 *
 * @throws {ImageError} `ERR_IMAGE_NOT_FOUND` and the other codes of a damaged image
 * @throws {SnapshotError} as `Snapshotter.open`
 *
 * @example
 * await using image = await openImage('oci:debian:12');
 * const { exitCode } = await image.run(['sh', '-c', 'echo new > /new']);
 */
export async function openImage(reference: string, options?: OpenImageOptions): Promise<OpenImage> {
  const { snapshotter, root, ...find } = toOptions(options, names);
  const { layout, tag } = toReference(reference);
  const image = await (await openLayout(layout)).image(tag, pick(find, ['platform']));
  return new OpenImage(
    image,
    snapshotter ?? (await Snapshotter.open(root ?? defaultRoot())),
    snapshotter === undefined,
  );
}

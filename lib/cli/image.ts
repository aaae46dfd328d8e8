/** `overlayfs image unpack`, `image ls` and `image commit` */
import type { ApplyLimits } from '../archives/apply-options.js';
import { commitImage, type Image, openLayout, type UnpackOptions, unpack } from '../images/index.js';
import { splitReference } from '../images/layout.js';
import { ownersInside } from '../images/run.js';
import { type Path, toAbsolute } from '../paths.js';
import { devicesFlag, limitFlags } from './apply.js';
import type { Command, Outcome, Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { performLong } from './long-work.js';
import { toColumn } from './ls.js';
import { subIdsFlag } from './program.js';
import { type RootFlag, rootFlag, toNames, withSnapshots } from './store.js';

export const platformFlag = ownFlag('platform', 'the platform of the image, such as linux/arm64', {
  kind: 'text',
  default: 'this one',
});

/** Finds the image LAYOUT[:TAG]. A path that is not UTF-8 has no tag. */
export async function findImage(operand: Path, platform?: string): Promise<Image> {
  const { layout, tag } =
    typeof operand === 'string' ? splitReference(operand.replace(/^oci:/, '')) : { layout: operand, tag: undefined };
  return (await openLayout(toAbsolute(layout))).image(tag, { platform });
}

export const imageJson = ({ digest, tag }: Image): object => ({ digest, tag });

interface ImageFlags extends RootFlag {
  readonly platform?: string;
}

type UnpackFlags = ImageFlags & ApplyLimits & Pick<UnpackOptions, 'devices'>;

async function runUnpack(parsed: Parsed<UnpackFlags>): Promise<Outcome> {
  const { root: _, platform, ...options } = parsed.options;
  const image = await findImage(parsed.operands[0] ?? '', platform);
  const { chainId, layers, reused } = await withSnapshots(parsed.options, {}, (snapshotter) =>
    performLong(parsed, (progress) => unpack(image, snapshotter, { ...options, ...progress })),
  );
  const text = `${chainId}\n${layers} layers unpacked, ${reused} were there\n`;
  return { text, json: { chainId, layers, reused } };
}

export const imageUnpack: Command<UnpackFlags> = {
  about: 'Unpacks the layers of an image into snapshots, and prints the name of the topmost: the parent of containers.',
  operands: '<IMAGE>',
  forms: ['[OPTION...] LAYOUT[:TAG]'],
  groups: [{ title: 'options', flags: [rootFlag, platformFlag, devicesFlag, ...limitFlags] }],
  examples: ['overlayfs image unpack ./debian:12'],
  run: runUnpack,
};

async function runLs({ operands: [dir = ''] }: Parsed<object>): Promise<Outcome> {
  const layout = await openLayout(toAbsolute(dir));
  return { rows: (await layout.tags()).map((tag) => ({ text: `${toColumn(tag)}\n`, json: { tag } })) };
}

export const imageLs: Command<object> = {
  about: 'Lists the tags of the images of an OCI layout, a line each.',
  operands: '<LAYOUT>',
  no: 'the layout has no tag',
  isNoIfEmpty: true,
  examples: ['overlayfs image ls ./debian'],
  run: runLs,
};

interface CommitFlags extends ImageFlags {
  readonly subIds?: boolean;
}

async function runCommit(parsed: Parsed<CommitFlags>): Promise<Outcome> {
  const [reference = '', ...names] = parsed.operands;
  const [key = '', tag = ''] = toNames(names);
  const image = await findImage(reference, parsed.options.platform);
  const owners = ownersInside(parsed.options.subIds === true);
  const committed = await withSnapshots(parsed.options, {}, (snapshotter) =>
    performLong(parsed, ({ signal }) =>
      commitImage(image, snapshotter, key, { tag, signal, ...(owners && { owners }) }),
    ),
  );
  return { text: `${committed.digest}\n`, json: { image: imageJson(committed) } };
}

export const imageCommit: Command<CommitFlags> = {
  about:
    'Commits the snapshot KEY of a container as an image of its layout, and prints its digest: a container whose commit ' +
    'failed, or a snapshot that was prepared on an unpacked image.',
  operands: '<IMAGE> <KEY> <TAG>',
  forms: ['[OPTION...] LAYOUT[:TAG] KEY TAG'],
  groups: [{ title: 'options', flags: [rootFlag, platformFlag, subIdsFlag] }],
  examples: ['overlayfs image commit ./debian:12 build mine'],
  run: runCommit,
};

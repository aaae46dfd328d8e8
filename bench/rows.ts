/** The measurements, one row each. */
import type { Row } from './kind.js';
import { archiveKinds } from './kinds/archives.js';
import { atOnceKinds } from './kinds/at-once.js';
import { copyKinds } from './kinds/copies.js';
import { flatKinds } from './kinds/flat.js';
import { imageKinds } from './kinds/images.js';
import { layerKinds } from './kinds/layers.js';
import { manyKinds } from './kinds/many.js';
import { mergeKinds } from './kinds/merges.js';
import { pairKinds } from './kinds/pairs.js';
import { programKinds } from './kinds/programs.js';
import { servedKinds } from './kinds/served.js';
import { snapshotKinds } from './kinds/snapshots.js';
import { startUpKinds } from './kinds/start-up.js';
import { statKinds } from './kinds/stats.js';
import { syncKinds } from './kinds/sync.js';
import { variantKinds } from './kinds/variants.js';
import { whiteoutKinds } from './kinds/whiteouts.js';

const kinds = [
  ...[...pairKinds, ...atOnceKinds, ...flatKinds, ...programKinds],
  ...[
    ...statKinds,
    ...variantKinds,
    ...whiteoutKinds,
    ...layerKinds,
    ...archiveKinds,
    ...mergeKinds,
    ...copyKinds,
    ...manyKinds,
    ...snapshotKinds,
    ...servedKinds,
    ...imageKinds,
    ...syncKinds,
  ],
  ...startUpKinds,
];

export const rows: readonly Row[] = kinds.flatMap((kind) =>
  (kind.on ?? (['tmpfs', 'ext4'] as const)).flatMap((fileSystem) =>
    (kind.waits ? [false, true] : [false]).map((spinner) => ({ kind, fileSystem, spinner })),
  ),
);

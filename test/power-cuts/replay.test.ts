/** Power cuts: what was acknowledged is there, and nothing names files that are missing, empty or torn. */
import { generator, isLong, mountTest, scratch } from '../support/index.js';
import { type FileSystem, recordDisk, replay } from './replay.js';
import { archives } from './scenarios/archives.js';
import { directories } from './scenarios/directories.js';
import { images } from './scenarios/images.js';
import { merges } from './scenarios/merges.js';
import { snapshots } from './scenarios/snapshots.js';

/** For each file system and each scenario. 10,000 together in a long run. */
const CUTS = Number(process.env['OVERLAYFS_TEST_CUTS'] ?? (isLong ? 667 : 5));

const needs = (fs: FileSystem) => ['FUSE', 'loop devices', `mkfs.${fs}`] as const;

for (const fs of ['ext4', 'xfs', 'btrfs'] satisfies FileSystem[]) {
  for (const scenario of [directories, archives, snapshots, images, merges]) {
    mountTest(`${scenario.name} keep what was acknowledged, on ${fs}`, { needs: needs(fs) }, async (t) => {
      t.timeout(3_600_000);
      const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
      const dir = scratch(t);
      const { setUp, work, check } = scenario(dir, generator(seed));
      const recording = await recordDisk(dir, fs, setUp, work);
      const cuts = await replay(recording, dir, CUTS, seed, check);
      t.log(`seed ${seed}, ${cuts} cuts`);
      t.pass();
    });
  }
}

mountTest(
  'without sync, a power cut loses what was acknowledged, and the replay sees it',
  { needs: needs('xfs') },
  async (t) => {
    const dir = scratch(t);
    const { setUp, work, check } = directories(dir, generator(1), 'none');
    const recording = await recordDisk(dir, 'xfs', setUp, work);
    await t.throwsAsync(replay(recording, dir, 20, 1, check), { message: /was acknowledged and is missing|Expected/ });
  },
);

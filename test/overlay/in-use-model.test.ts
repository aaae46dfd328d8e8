import { mountTest } from '../support/index.js';
import { runModel } from './in-use-model.js';

mountTest('the library refuses what the kernel says is in use, and nothing else', { needs: 'uniqueMountId' }, runModel);

"""Where each edition's recordings are: Zenodo records, archive names, recorded md5 sums.

Data only; `asdjax.data.fetch` reads it. A new edition is a row in `_RELEASES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Archive:
    """One zip of one machine type; it unpacks to `<machine>/...`."""

    machine: str
    record: int  # Zenodo record
    name: str

    @property
    def md5(self) -> str | None:
        """The md5 recorded when this table was written; None where nobody had recorded one."""
        return MD5.get(self.record, {}).get(self.name)


@dataclass(frozen=True)
class Release:
    """One Zenodo record: the same kind of archive for several machine types."""

    record: int
    pattern: str
    machines: str  # separated by spaces
    renamed: dict[str, str] = field(
        default_factory=dict
    )  # machine -> name of the corrected archive

    def archives(self) -> list[Archive]:
        return [
            Archive(machine, self.record, self.renamed.get(machine, self.pattern.format(machine)))
            for machine in self.machines.split()
        ]


_2020 = "ToyCar ToyConveyor fan pump slider valve"
_2021 = "ToyCar ToyTrain fan gearbox pump slider valve"
_2022 = "ToyCar ToyTrain bearing fan gearbox slider valve"  # 2022-2025: the development types
_EVAL_2023 = "ToyDrone ToyNscale ToyTank Vacuum bandsaw grinder shaker"
_EVAL_2024 = (
    "3DPrinter AirCompressor BrushlessMotor HairDryer HoveringDrone"
    " RoboticArm Scanner ToothBrush ToyCircuit"
)
_EVAL_2025 = "AutoTrash BandSealer CoffeeGrinder HomeCamera Polisher ScrewFeeder ToyPet ToyRCCar"
_DEV_2026 = "ToyCar ToyCarEmu bearingEmu fan gearboxEmu sliderEmu valveEmu"
_EVAL_2026 = "BlowerDustCollector Sander SewingMachine ToothBrush ToyDrone"
_TRAIN, _TEST = "eval_data_{}_train.zip", "eval_data_{}_test.zip"

# (year, part) -> its records; "eval" is the additional training set and the evaluation test set.
_RELEASES = {
    (2020, "dev"): [Release(3678171, "dev_data_{}.zip", _2020)],
    (2020, "eval"): [
        Release(3727685, "eval_data_train_{}.zip", _2020),
        Release(3841772, "eval_data_test_{}.zip", _2020),
    ],
    (2021, "dev"): [Release(4562016, "dev_data_{}.zip", _2021)],
    (2021, "eval"): [Release(4660992, _TRAIN, _2021), Release(4884786, _TEST, _2021)],
    (2022, "dev"): [Release(6355122, "dev_{}.zip", _2022)],
    (2022, "eval"): [Release(6462969, _TRAIN, _2022), Release(6586456, _TEST, _2022)],
    (2023, "dev"): [Release(7882613, "dev_{}.zip", _2022)],
    (2023, "eval"): [Release(7830345, _TRAIN, _EVAL_2023), Release(7860847, _TEST, _EVAL_2023)],
    (2024, "dev"): [Release(10902294, "dev_{}.zip", _2022)],
    (2024, "eval"): [
        Release(
            11259435,
            _TRAIN,
            _EVAL_2024,
            {
                "3DPrinter": "eval_data_3DPrinter_train_r2.zip",
                "RoboticArm": "eval_data_RoboticArm_train_r2.zip",
            },
        ),
        Release(11363076, _TEST, _EVAL_2024),
    ],
    (2025, "dev"): [Release(15097779, "dev_{}.zip", _2022)],
    (2025, "eval"): [Release(15392814, _TRAIN, _EVAL_2025), Release(15519362, _TEST, _EVAL_2025)],
    (2026, "dev"): [Release(19336329, "dev_{}.zip", _DEV_2026, {"ToyCar": "dev_ToyCar_r2.zip"})],
    (2026, "eval"): [Release(20151556, _TRAIN, _EVAL_2026), Release(20437238, _TEST, _EVAL_2026)],
}

ARCHIVES: dict[tuple[int, str], list[Archive]] = {
    key: [archive for release in releases for archive in release.archives()]
    for key, releases in _RELEASES.items()
}

# Labels of the evaluation test sets. They are not fetched: from 2023 on their licence allows
# evaluation only and forbids passing them on, so each user gets them from the organisers.
EVALUATORS = {
    2020: "https://zenodo.org/records/3951620",
    2021: "https://github.com/y-kawagu/dcase2021_task2_evaluator",
    2022: "https://github.com/Kota-Dohi/dcase2022_evaluator",
    2023: "https://github.com/nttcslab/dcase2023_task2_evaluator",
    2024: "https://github.com/nttcslab/dcase2024_task2_evaluator",
    2025: "https://github.com/nttcslab/dcase2025_task2_evaluator",
    2026: "https://github.com/nttcslab/dcase2026_task2_evaluator",
}

# record -> archive -> md5, as public loaders and download logs recorded them (2020, 2023, 2026).
MD5: dict[int, dict[str, str]] = {
    3678171: {
        "dev_data_fan.zip": "649bdfc06263ae7a838963f43b6641e6",
        "dev_data_pump.zip": "90e7091ef722b7238a7f1009365779cd",
        "dev_data_slider.zip": "da24a757719f0d94d5aa2d646bbfdc86",
        "dev_data_ToyCar.zip": "4dec75ca8d9f666aa9e4c1894a740501",
        "dev_data_ToyConveyor.zip": "03b6aa1bfd09a39d53af0ba39f71fa91",
        "dev_data_valve.zip": "34d2672f55bb041589ef79c10dc89934",
    },
    3727685: {
        "eval_data_train_fan.zip": "567798854130c8019df8b664c095ed1e",
        "eval_data_train_pump.zip": "4e33ae9c0db5cc88437675f5e317caee",
        "eval_data_train_slider.zip": "f84f186f4295fc23754abcdd1b0580a7",
        "eval_data_train_ToyCar.zip": "a5d4ccd498af70b04dd74b644b820006",
        "eval_data_train_ToyConveyor.zip": "0e808ac0b761e9fb13d5e0c65caff00d",
        "eval_data_train_valve.zip": "057cdd560caffb8305449541afd28c6d",
    },
    3841772: {
        "eval_data_test_fan.zip": "1eb9356a768cadfd0f2e59a5c57e578b",
        "eval_data_test_pump.zip": "23a8f8f924be218c69df67fe07360348",
        "eval_data_test_slider.zip": "0193c769073840332ce3aad84b1ccaa2",
        "eval_data_test_ToyCar.zip": "bea2bdd612f616be8f2b8eb087b32c7c",
        "eval_data_test_ToyConveyor.zip": "ccfcc9847c7d3404d7ee9d6d9e0b2ba2",
        "eval_data_test_valve.zip": "f69c551d2088691050d20cccca9d631c",
    },
    7882613: {
        "dev_bearing.zip": "8a813bc8d8f156b5395bfccdfac7673c",
        "dev_fan.zip": "9348591e96fb0ad499a1e33b082562fc",
        "dev_gearbox.zip": "b6e55f6a31faa0fc8569ec0afdd53ccf",
        "dev_slider.zip": "b3f8dee36b4718c36d659a4fd1c4afe0",
        "dev_ToyCar.zip": "4e3bf15f4101ed4ed4f1fecde2e2b2a3",
        "dev_ToyTrain.zip": "6b02a6c65eebb3b8b1ae59a6b25bb897",
        "dev_valve.zip": "b2051a2022eadb53cd97581120811cae",
    },
    7830345: {
        "eval_data_bandsaw_train.zip": "9274dfe63de028743823f1123f8b4b47",
        "eval_data_grinder_train.zip": "17569c1f9df23621a0dbabc430684a35",
        "eval_data_shaker_train.zip": "35f821b5645b731fb5a1750e33b95fc3",
        "eval_data_ToyDrone_train.zip": "7fea367d1384a1521ae24f72203238de",
        "eval_data_ToyNscale_train.zip": "9332822f3e47afd984c01f2ecb5ca3af",
        "eval_data_ToyTank_train.zip": "b1fd3ab7de7561290df2d477de1c9d33",
        "eval_data_Vacuum_train.zip": "1c8de33d9a8c7850a1f7aaddb97d87be",
    },
    7860847: {
        "eval_data_bandsaw_test.zip": "2a8e8f39f6584ab366a8f4da52d4d7a6",
        "eval_data_grinder_test.zip": "631b3e1608b6077772829a6e68c82c77",
        "eval_data_shaker_test.zip": "ba98c98caa96051ec80e24e44b8fca56",
        "eval_data_ToyDrone_test.zip": "fdae7b8d1f4cadb2bea88bc93e2367db",
        "eval_data_ToyNscale_test.zip": "62f5f5043d8fb3a305b1c2e1025872de",
        "eval_data_ToyTank_test.zip": "f5639bf58c47169c622751f19c6fc321",
        "eval_data_Vacuum_test.zip": "a32524fd8c45b574a560685b38acc4e1",
    },
    19336329: {
        "dev_ToyCar_r2.zip": "353201db217e25377a7e7eccf9c1c8a7",
        "dev_ToyCarEmu.zip": "187b0b3f84d2452d8944d5c831305f15",
        "dev_bearingEmu.zip": "82c2d04c5f48d09842152c34ef273667",
        "dev_fan.zip": "58b79bac4b05bf14a11e9d53e6cdfae9",
        "dev_gearboxEmu.zip": "21ef8b6dea66472bc4e7c91a175efdb7",
        "dev_sliderEmu.zip": "1cbc87a09883a1aa05a6b2a4308efb83",
        "dev_valveEmu.zip": "f7f74e59773eefa512f24625d88d58f0",
    },
    20151556: {
        "eval_data_BlowerDustCollector_train.zip": "e79342948772cf51e50ff601cd9621f3",
        "eval_data_Sander_train.zip": "6cbcfbc65a09c4f3d00b9a55c50502ec",
        "eval_data_SewingMachine_train.zip": "74d08cacba3da88753badd69d19e577b",
        "eval_data_ToothBrush_train.zip": "6fa5f81796b5d37b3ed24bb8eff2ea25",
        "eval_data_ToyDrone_train.zip": "af3e4040ef7c67d7ee920608d0c38d82",
    },
    20437238: {
        "eval_data_BlowerDustCollector_test.zip": "ec90d56f189e84e6430fb2878c59cb84",
        "eval_data_Sander_test.zip": "05f81c9a80e91c7b3cea15f8e8559b44",
        "eval_data_SewingMachine_test.zip": "f0a1a96b48006c301e8cec25e9214046",
        "eval_data_ToothBrush_test.zip": "987395506fbb48c570d5d26babcab05e",
        "eval_data_ToyDrone_test.zip": "b36102371c188b630d201d443a00bab2",
    },
}

"""What Android's tools print, in their own formats (Pixel and Samsung phones, adb 29 to 35)."""

from __future__ import annotations

DEVICE = "34291FDHS001AB         device usb:1-4 product:shiba model:Pixel_8 device:shiba transport_id:3"
SECOND = "emulator-5554          device product:sdk_gphone64_x86_64 model:sdk_gphone64_x86_64 transport_id:1"
UNAUTHORIZED = "34291FDHS001AB         unauthorized usb:1-4 transport_id:4"
OFFLINE = "34291FDHS001AB         offline usb:1-4 transport_id:5"
AUTHORIZING = "34291FDHS001AB         authorizing usb:1-4 transport_id:6"
NO_PERMISSIONS = (
    "34291FDHS001AB         no permissions (user in plugdev group; are your udev rules wrong?); "
    "see [http://developer.android.com/tools/device.html] usb:1-4 transport_id:7"
)
SERIAL = "34291FDHS001AB"


def devices(*lines: str) -> str:
    return "\n".join(("List of devices attached", *lines, "", ""))


STARTING = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"


def battery(*, charging: str | None = None, status: int = 3, voltage: int = 4012) -> str:
    flags = "\n".join(
        f"  {name} powered: {str(name == charging).lower()}" for name in ("AC", "USB", "Wireless", "Dock")
    )
    return f"""Current Battery Service state:
{flags}
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 3120000
  status: {status}
  health: 2
  present: true
  level: 81
  scale: 100
  voltage: {voltage}
  temperature: 284
  technology: Li-ion
"""


def thermal(status: int = 0, skin: float = 31.5) -> str:
    return f"""IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 3
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 5
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=26.1, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}
\tTemperature{{mValue=28.4, mType=2, mName=battery, mStatus=0}}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 2  connected: yes
Current temperatures from HAL:
\tTemperature{{mValue=48.2, mType=0, mName=BIG, mStatus=0}}
\tTemperature{{mValue=28.4, mType=2, mName=battery, mStatus=0}}
\tTemperature{{mValue={skin}, mType=3, mName=VIRTUAL-SKIN, mStatus={status}}}
\tTemperature{{mValue=-40.0, mType=4, mName=usb_pwr_therm, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""


DF = """Filesystem       1K-blocks     Used Available Use% Mounted on
/dev/block/dm-50 115234800 61234800  53868928  54% /data/user/0
"""
DF_FULL = """Filesystem       1K-blocks      Used Available Use% Mounted on
/dev/block/dm-50 115234800 115234792         8 100% /data/user/0
"""


def exit_info(pid: int, reason: str, description: str = "null") -> str:
    return f"""ACTIVITY MANAGER PROCESS EXIT INFO (dumpsys activity exit-info)
Last Timestamp of Persistence Into Persistent Storage: 2026-11-20 10:12:15.122
  package: org.mobileicsa.demo.onnxruntime
    Historical Process Exit for uid=10321
        ApplicationExitInfo #0:
          timestamp=2026-11-20 10:14:03.771 pid={pid} realUid=10321 packageUid=10321 definingUid=10321 user=0
          process=org.mobileicsa.demo.onnxruntime reason={reason} subreason=0 (UNKNOWN) status=0
          importance=100 pss=1.9GB rss=2.3GB description={description} state=empty trace=null
        ApplicationExitInfo #1:
          timestamp=2026-11-20 10:02:44.120 pid=11 realUid=10321 packageUid=10321 definingUid=10321 user=0
          process=org.mobileicsa.demo.onnxruntime reason=10 (USER REQUESTED) subreason=21 (FORCE STOP) status=0
          importance=100 pss=61MB rss=187MB description=null state=empty trace=null
"""


STATUS = """Name:\tcsa.demo.onnxrt
Umask:\t0077
State:\tS (sleeping)
Pid:\t4711
VmPeak:\t16512340 kB
VmHWM:\t  345678 kB
VmRSS:\t  298112 kB
Threads:\t31
"""

@echo off
rem Opens Velatura's page in the browser. The first start makes what it needs: a virtual environment in .venv with the exact
rem versions of constraints.txt. Options of the page may follow: start.bat --port 7861
rem
rem torch is the one large download. For Windows PyPI has the build that computes on the CPU. With an NVIDIA GPU take, once,
rem the one that pytorch.org names for its driver, in a command window:
rem
rem   set PIP_ARGS=--extra-index-url https://download.pytorch.org/whl/cu130
rem   start.bat
rem
rem Another interpreter: set PYTHON=C:\Python312\python.exe
setlocal
cd /d "%~dp0"
set "BIN=.venv\Scripts"

if not exist ".venv\.stamp" goto make
"%BIN%\python.exe" -c "import os, sys; t = os.path.getmtime; sys.exit(any(t(f) > t('.venv/.stamp') for f in ('pyproject.toml', 'constraints.txt')))" && goto open

:make
set "FOUND="
if defined PYTHON call :try "%PYTHON%"
if not defined PYTHON for %%v in (3.12 3.11 3.10 3) do if not defined FOUND call :try py -%%v
if not defined PYTHON if not defined FOUND call :try python
if not defined FOUND goto none

rem .begun stays behind when an install is cut off; the environment is then made afresh, since half a package can look like
rem a whole one to pip. .stamp is written last. The Makefile keeps both too.
if exist ".venv\.begun" echo The last install was cut off; starting afresh.
if exist ".venv\.begun" rmdir /s /q ".venv"
if not defined PIP_ARGS where nvidia-smi >nul 2>nul && echo There is an NVIDIA GPU here, and this torch won't use it. To change that, press Ctrl-C and read the head of start.bat.
echo Making the environment, once. Most of it is torch, which takes some minutes to download.
%FOUND% -m venv ".venv" || goto failed
type nul > ".venv\.begun"
"%BIN%\python.exe" -m pip install --disable-pip-version-check %PIP_ARGS% -c constraints.txt setuptools || goto failed
"%BIN%\python.exe" -m pip install --disable-pip-version-check %PIP_ARGS% -c constraints.txt --no-build-isolation -e ".[dev]" || goto failed
del ".venv\.begun"
type nul > ".venv\.stamp"

:open
"%BIN%\python.exe" -m trainer app --open %* || goto stopped
exit /b 0

:try
%* -c "import sys; sys.exit(sys.version_info < (3, 10))" >nul 2>nul && set FOUND=%*
exit /b 0

:none
echo Velatura needs Python 3.10 or newer, and there is none here. Install it from https://www.python.org/downloads and tick
echo "Add python.exe to PATH", or name yours: set PYTHON=C:\Python312\python.exe
pause
exit /b 1

:failed
echo The environment could not be made; the reason stands above. The next start makes it afresh.
pause
exit /b 1

:stopped
pause
exit /b 1
